// Minify JavaScript modules with terser in a pool of worker threads, as bundlers do.
// The program of the shipped recording: see benchmarks/record_demo.sh.
//
// WORKERS: threads in the pool.  FILES: modules of terser itself to minify.
import { Worker, isMainThread, parentPort } from 'node:worker_threads';
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const files = (process.env.FILES ?? 'size,sourcemap').split(',');
const workers = Number(process.env.WORKERS ?? 2);

if (isMainThread) {
  const library = new URL('./node_modules/terser/lib/', import.meta.url);
  let bytes = 0;
  for (let i = 0; i < workers; i++) {
    const worker = new Worker(fileURLToPath(import.meta.url));
    const next = () => {
      const name = files.pop();
      if (name) worker.postMessage(readFileSync(new URL(`${name}.js`, library), 'utf8'));
      else worker.terminate();
    };
    worker.on('message', (size) => { bytes += size; next(); });
    next();
  }
  process.on('exit', () => console.log(`${bytes} bytes after minification`));
} else {
  // Name the thread, so that the recording tells the pool from V8's own threads.
  writeFileSync('/proc/thread-self/comm', 'minify-worker');
  const { minify } = await import('terser');
  parentPort.on('message', async (text) => {
    parentPort.postMessage((await minify(text, { module: true })).code.length);
  });
}

// Two workers that allocate buffers and objects: a program to be recorded.
const { Worker, isMainThread } = require('worker_threads');

if (isMainThread) {
	for (let i = 0; i < 2; i++) new Worker(__filename);
} else {
	let sum = 0;
	for (let i = 0; i < 200; i++) {
		const buffer = Buffer.alloc(2 << 20);
		for (let k = 0; k < buffer.length; k += 512) buffer[k] = i;
		const objects = [];
		for (let k = 0; k < 20000; k++) objects.push({ k, text: 'x' + k });
		sum += buffer[17] + objects.length;
	}
}

import java.util.Random;

/** Two threads that allocate and keep some of it: a program to be recorded. */
public class Alloc {
	static class Node {
		Node next;
		byte[] load;

		Node(Node next, int size) {
			this.next = next;
			load = new byte[size];
		}
	}

	static void work(int seed) {
		Random random = new Random(seed);
		Node keep = null;
		int kept = 0;
		for (int i = 0; i < 60000; i++) {
			keep = new Node(keep, 1000 + random.nextInt(4000));
			if (++kept > 20000) {
				keep = null;
				kept = 0;
			}
		}
	}

	public static void main(String[] args) throws Exception {
		Thread[] threads = new Thread[2];
		for (int t = 0; t < threads.length; t++) {
			final int seed = t;
			threads[t] = new Thread(() -> work(seed));
			threads[t].start();
		}
		for (Thread thread : threads)
			thread.join();
	}
}

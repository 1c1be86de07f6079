// Waiting for conditions, always with a deadline.
import { setTimeout as sleep } from 'node:timers/promises';

const POLL_MS = 10;

// The first truthy value of `probe`, which may be asynchronous. Throws when there is none in time; `what` may be a
// function, called then.
export async function waitUntil(what, probe, { timeoutMs = 60_000 } = {}) {
  const deadline = performance.now() + timeoutMs;
  while (true) {
    const value = await probe();
    if (value) return value;
    if (performance.now() > deadline) {
      throw new Error(`not within ${timeoutMs} ms: ${typeof what === 'function' ? what() : what}`);
    }
    await sleep(POLL_MS);
  }
}

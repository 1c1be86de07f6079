// Programs that the tests start. None outlives its test: each is killed when this process ends, however it ends
// (setpriv asks the kernel for that, as nobody else acts when the test is killed).
import { spawn } from 'node:child_process';
import path from 'node:path';

import { BIN, ROOT } from './paths.mjs';

const living = new Set();
process.on('exit', () => {
  for (const child of living) child.kill('SIGKILL');
});
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => process.exit(1));
}

export function start(program, args, { stdin = 'ignore', env = {} } = {}) {
  const child = spawn('setpriv', ['--pdeathsig', 'TERM', path.join(BIN, program), ...args], {
    cwd: ROOT,
    stdio: [stdin, 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  });
  living.add(child);
  child.ended = new Promise((resolve) => {
    child.on('error', (error) => resolve({ code: null, signal: null, error }));
    child.on('close', (code, signal) => resolve({ code, signal }));
  }).finally(() => living.delete(child));
  return child;
}

// `hearth ARGS` to its end: {code, stdout, stderr}. `input` is piped to it.
export async function hearth(args, { input = '', env = {}, timeoutMs = 120_000 } = {}) {
  const child = start('hearth', args, { stdin: 'pipe', env });
  const out = [];
  const err = [];
  child.stdout.on('data', (bytes) => out.push(bytes));
  child.stderr.on('data', (bytes) => err.push(bytes));
  child.stdin.on('error', () => {});  // it may end without reading all
  child.stdin.end(input);
  const timer = setTimeout(() => child.kill('SIGKILL'), timeoutMs);
  const { code, signal, error } = await child.ended;
  clearTimeout(timer);
  const stdout = Buffer.concat(out).toString('utf8');
  const stderr = Buffer.concat(err).toString('utf8');
  if (error) throw error;
  if (signal) throw new Error(`hearth ${args.join(' ')} ended by ${signal} (limit ${timeoutMs} ms)\n${stderr}`);
  return { code, stdout, stderr };
}

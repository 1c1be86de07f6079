// The machine in general words: what speed depends on, no name.
import { readFileSync } from 'node:fs';
import os from 'node:os';

const FEATURES = [['avx2', 'AVX2'], ['avx512f', 'AVX-512'], ['avx512_vnni', 'VNNI'], ['amx_tile', 'AMX']];

export function machine(note = '') {
  const flags = new Set(/^flags\s*: (.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1].split(' '));
  const features = FEATURES.filter(([flag]) => flags.has(flag)).map(([, name]) => name);
  const memory = Math.round(os.totalmem() / 2 ** 30);
  const cores = os.cpus().length;
  return [`${cores} cores`, features.join(' '), `${memory} GiB`, note].filter((part) => part !== '').join(', ');
}

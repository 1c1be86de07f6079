// Where the repository's parts are, for tests and benchmarks.
import path from 'node:path';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

export const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../../..');
// CTest says which build it tests; by hand it is the release build.
export const BIN = process.env.HEARTH_BIN_DIR ?? path.join(ROOT, 'build/release/bin');
export const DEMO = path.join(ROOT, 'models/demo');
export const GOLDEN = path.join(ROOT, 'tests/golden');

export const readJson = (file) => JSON.parse(readFileSync(file, 'utf8'));

// `hearth verify` on every reference in the repository.
import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import { describe, test } from 'node:test';

import { DEMO, GOLDEN } from './harness/paths.mjs';
import { hearth } from './harness/processes.mjs';

const reference = (name) => `${GOLDEN}/${name}/reference.safetensors`;
const MODELS = readdirSync(GOLDEN).filter((name) => existsSync(`${GOLDEN}/${name}/config.json`) && existsSync(reference(name)));

async function verify(model, file, ...flags) {
  return hearth(['verify', model, file, ...flags], { timeoutMs: 300_000 });
}

describe('hearth verify', () => {
  test('the references are there', () => {
    for (const name of ['tiny-a', 'tiny-a-bf16', 'tiny-b']) assert.ok(MODELS.includes(name), name);
    assert.equal(MODELS.filter((name) => name.startsWith('made-')).length, 4);
  });

  for (const name of MODELS) {
    test(`${name} is within tolerance, and says so in JSON`, async () => {
      const { code, stdout, stderr } = await verify(`${GOLDEN}/${name}`, reference(name), '--json');
      assert.equal(code, 0, stdout + stderr);
      const report = JSON.parse(stdout);
      assert.equal(report.ok, true);
      assert.deepEqual(report.skipped, []);
      assert.ok(report.tokens > 0);
      assert.ok(report.mean_nll > 0);
      assert.ok(report.quantities.length > 12, `${report.quantities.length} quantities`);
      for (const quantity of report.quantities) {
        assert.equal(quantity.ok, true, quantity.name);
        assert.ok(quantity.mean_error <= quantity.largest_error, quantity.name);
      }
    });
  }

  test('without --json a table says the same', async () => {
    const { code, stdout } = await verify(`${GOLDEN}/tiny-a`, reference('tiny-a'));
    assert.equal(code, 0);
    assert.match(stdout, /all within tolerance\n$/);
  });

  test('another model\'s reference is found wrong, in JSON too', async () => {
    const { code, stdout } = await verify(`${GOLDEN}/tiny-a`, reference('tiny-a-bf16'), '--json');
    assert.equal(code, 1);
    const report = JSON.parse(stdout);
    assert.equal(report.ok, false);
    assert.ok(report.quantities.some((quantity) => !quantity.ok));
    const table = await verify(`${GOLDEN}/tiny-a`, reference('tiny-a-bf16'));
    assert.equal(table.code, 1);
    assert.match(table.stdout, /WRONG[^]*NOT within tolerance\n$/);
  });

  test('what cannot be compared is an error with the reason', async () => {
    for (const [model, file, reason] of [
      ['/nonexistent', reference('tiny-a'), /\/nonexistent/],
      [`${GOLDEN}/tiny-a`, '/nonexistent.safetensors', /nonexistent\.safetensors/],
      [`${GOLDEN}/tiny-a`, `${GOLDEN}/tiny-a/model.safetensors`, /input_ids/],
      [`${GOLDEN}/tiny-a`, `${GOLDEN}/tiny-a/config.json`, /config\.json/],
      [DEMO, `${GOLDEN}/text/tokenizer_cases.json`, /tokenizer_cases\.json/],
    ]) {
      const { code, stdout, stderr } = await verify(model, file, '--json');
      assert.equal(code, 2, stderr);
      assert.equal(stdout, '');
      assert.match(stderr, reason);
    }
  });
});

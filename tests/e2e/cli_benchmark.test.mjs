// `hearth make-model` and `hearth benchmark`, and a synthetic model behind the whole API.
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, describe, test } from 'node:test';

import { get, post } from './harness/client.mjs';
import { Cluster } from './harness/cluster.mjs';
import { GOLDEN } from './harness/paths.mjs';
import { hearth } from './harness/processes.mjs';

const folder = mkdtempSync(path.join(os.tmpdir(), 'hearth-test-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const QUICK = ['--repetitions', '2', '--tests', 'prefill:16,decode:4@32', '--json'];
const benchmark = (...args) => hearth(['benchmark', ...args]);

async function refused(args, reason) {
  const { code, stdout, stderr } = await hearth(args);
  assert.equal(code, 2, args.join(' '));
  assert.equal(stdout, '', args.join(' '));
  assert.match(stderr, reason, args.join(' '));
}

describe('hearth make-model', () => {
  test('writes what inspect takes for a published checkpoint', async () => {
    const out = path.join(folder, 'tiny');
    const made = await hearth(['make-model', '--shape', 'tiny', '--layers', '3', '--out', out, '--seed', '9']);
    assert.equal(made.code, 0, made.stderr);
    assert.match(made.stdout, /synthetic:tiny,layers=3,seed=9/);
    const { code, stdout } = await hearth(['inspect', out]);
    assert.equal(code, 0);
    assert.match(stdout, /3: 3 delta net, 0 attention; 3 with experts/);
    assert.match(stdout, /experts kept in nf4/);
    assert.match(stdout, /unknown tensors 0/);
    const index = JSON.parse(readFileSync(path.join(out, 'model.safetensors.index.json'), 'utf8'));
    assert.ok('model.layers.2.mlp.experts.7.down_proj.weight.quant_state.bitsandbytes__nf4' in index.weight_map);
  });

  test('what cannot be made is refused, and nothing is left', async () => {
    const out = path.join(folder, 'never');
    const make = (...args) => ['make-model', '--out', out, ...args];
    await refused(make('--shape', 'tiny', '--layers', '0'), /allowed are 1 to 48/);
    await refused(make('--shape', 'tiny', '--layers', '49'), /49 layers: allowed are 1 to 48/);
    await refused(make('--shape', 'huge'), /unknown shape 'huge', one of qwen3-next-80b, demo, small, tiny/);
    await refused(make(), /--shape is required/);
    assert.equal(existsSync(out), false);
    await refused(['make-model', '--shape', 'tiny', '--out', GOLDEN], /holds something already/);
    assert.ok(readdirSync(GOLDEN).length > 0);
  });
});

describe('hearth benchmark', () => {
  test('prints one JSON object whose results are the tests that were asked for', async () => {
    const { code, stdout, stderr } = await benchmark('--model', 'synthetic:tiny', '--batch', '1,2', '--threads', '2', ...QUICK);
    assert.equal(code, 0, stderr);
    const report = JSON.parse(stdout);
    assert.equal(report.model, 'synthetic:tiny,layers=4,seed=1');
    assert.equal(typeof report.commit, 'string');
    assert.equal(typeof report.dirty, 'boolean');
    assert.ok(report.machine.cores >= 1);
    assert.ok(report.read_bandwidth_bytes_per_second.median > 0);
    assert.deepEqual(report.results.map((r) => [r.test, r.tokens, r.context, r.batch, r.threads]),
      [['prefill', 16, 0, 1, 2], ['decode', 4, 32, 1, 2], ['prefill', 16, 0, 2, 2], ['decode', 4, 32, 2, 2]]);
    for (const { tokens_per_second: rate, bytes_per_token: bytes } of report.results) {
      assert.ok(rate.min > 0 && rate.min <= rate.median && rate.median <= rate.max);
      assert.ok(bytes > 0);
    }
    assert.match(report.parameters.contexts, /filled with random/);
    assert.match(report.parameters.routing, /flat/);
  });

  test('the table says what was measured and how', async () => {
    const { code, stdout } = await benchmark('--model', 'synthetic:tiny', '--tests', 'decode:2', '--repetitions', '1',
      '--routing', 'locality:4');
    assert.equal(code, 0);
    assert.match(stdout, /routing +imposed: .* working set of 4 of 8 experts/);
    assert.match(stdout, /decode:2@0 +1 /);
  });

  test('guesses give more tokens a step, as many as are said to be right', async () => {
    const run = async (...args) => {
      const { code, stdout, stderr } = await benchmark('--model', 'synthetic:tiny,mtp=1', '--tests', 'decode:12@16', '--repetitions', '1', '--json', ...args);
      assert.equal(code, 0, stderr);
      return JSON.parse(stdout);
    };
    const off = await run();
    assert.equal(off.parameters.mtp, 'off');
    assert.equal(off.results[0].tokens_per_step, 1);
    const on = await run('--mtp', 'on', '--mtp-drafts', '2', '--mtp-right', '1');
    assert.match(on.parameters.mtp, /2 a step, 100 % of those tried right/);
    assert.equal(on.results[0].tokens_per_step, 3);
    await refused(['benchmark', '--model', 'synthetic:tiny', '--mtp', 'on', '--tests', 'decode:2'], /has no multi-token prediction head/);
  });

  test('a recorded trace is replayed', async () => {
    const trace = `${GOLDEN}/tiny-a/reference.safetensors`;
    const { code, stdout, stderr } = await benchmark('--model', `${GOLDEN}/tiny-a`, '--routing', `trace:${trace}`, ...QUICK);
    assert.equal(code, 0, stderr);
    assert.equal(JSON.parse(stdout).parameters.routing, `replayed from ${trace}`);
  });

  test('a slower run than the old one ends with 1, a faster one with 0', async () => {
    const args = ['--model', 'synthetic:tiny', ...QUICK];
    const old = JSON.parse((await benchmark(...args)).stdout);
    const file = path.join(folder, 'old.json');
    for (const [factor, exit] of [[1000, 1], [0.001, 0]]) {
      const changed = structuredClone(old);
      for (const { tokens_per_second: rate } of changed.results) {
        for (const name of ['median', 'min', 'max']) rate[name] *= factor;
      }
      writeFileSync(file, JSON.stringify(changed));
      const { code, stdout } = await benchmark(...args, '--compare', file);
      assert.equal(code, exit, stdout);
      assert.equal(JSON.parse(stdout).comparison.slower, exit === 1);
    }
  });

  test('what cannot be measured is refused with the reason', async () => {
    const model = ['benchmark', '--model', 'synthetic:tiny'];
    await refused(['benchmark'], /give --model or --machine/);
    await refused([...model, '--tests', 'decode:0'], /the number of tokens is '0'/);
    await refused([...model, '--batch', '1,x'], /the batch is 'x'/);
    await refused([...model, '--routing', 'warm'], /allowed are flat, locality/);
    await refused([...model, '--compare', '/nonexistent.json'], /nonexistent\.json/);
    await refused(['benchmark', '--model', 'synthetic:tiny,layers=99'], /allowed are 1 to 48/);
    await refused(['benchmark', '--model', '/nonexistent'], /\/nonexistent/);
    // Keys and values of 256 sequences of a million tokens: beyond every memory.
    await refused(['benchmark', '--model', 'synthetic:qwen3-next-80b,layers=48', '--tests', 'decode:1@1024k', '--batch', '256'],
      /keys and values .* choose fewer layers, shorter contexts or smaller batches/);
  });

  test('--machine measures reading and arithmetic', async () => {
    const { code, stdout } = await benchmark('--machine', '--json', '--threads', '2');
    assert.equal(code, 0);
    const { speed } = JSON.parse(stdout);
    assert.deepEqual(speed.read_bandwidth.map((reading) => reading.threads), [1, 2]);
    for (const reading of speed.read_bandwidth) assert.ok(reading.bytes_per_second.median > 1e8);
    for (const rate of speed.compute) assert.ok(rate.operations_per_second.median > 1e8, rate.name);
  });
});

test('a synthetic model is served by its name', async () => {
  const cluster = await Cluster.start([], { model: 'synthetic:tiny' });
  try {
    const models = await get(cluster, '/v1/models');
    const { id } = JSON.parse(models.text).data[0];
    const answer = await post(cluster, '/v1/chat/completions', {
      model: id,
      messages: [{ role: 'user', content: 'Hi' }],
      max_tokens: 5,
    });
    assert.equal(answer.status, 200);
    assert.ok(answer.body.usage.prompt_tokens > 5);
  } finally {
    await cluster.stop();
  }
});

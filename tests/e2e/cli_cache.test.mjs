// `hearth profile` and `hearth cache`: a run's routing recorded, counted and replayed; a running worker's cache asked.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';

import { Cluster } from './harness/cluster.mjs';
import { DEMO } from './harness/paths.mjs';
import { hearth } from './harness/processes.mjs';

const folder = mkdtempSync(path.join(os.tmpdir(), 'hearth-test-'));
after(() => rmSync(folder, { recursive: true, force: true }));

async function refused(args, reason) {
  const { code, stdout, stderr } = await hearth(args);
  assert.equal(code, 2, args.join(' '));
  assert.equal(stdout, '', args.join(' '));
  assert.match(stderr, reason, args.join(' '));
}

describe('a recorded run', () => {
  const trace = path.join(folder, 'trace');
  before(async () => {
    const prompts = path.join(folder, 'prompts');
    writeFileSync(prompts, 'Define sad.\nWhat does forfeit mean?\n');
    const { code, stderr } = await hearth(['profile', '--record', trace, '--model', DEMO, '--prompts', prompts,
      '--prompt', 'approximately', '--max-tokens', '20']);
    assert.equal(code, 0, stderr);
    assert.match(stderr, /tokens of 3 prompts/);
  });

  test('is counted into a profile whose sums are the tokens, top_k for each', async () => {
    const out = path.join(folder, 'profile.json');
    const { code, stdout } = await hearth(['profile', trace]);
    assert.equal(code, 0);
    assert.equal((await hearth(['profile', trace, '--out', out])).code, 0);
    assert.equal(readFileSync(out, 'utf8'), stdout);
    const profile = JSON.parse(stdout);
    assert.match(profile.fingerprint, /^[0-9a-f]{64}$/);
    const sums = Array(8).fill(0);
    for (const [layer, expert, count] of profile.counts) {
      assert.ok(expert < 32 && count > 0);
      sums[layer] += count;
    }
    assert.equal(new Set(sums).size, 1);
    assert.equal(sums[0] % 4, 0);
  });

  test('is replayed through every policy and the optimum', async () => {
    const args = ['cache', 'simulate', trace, '--slots', '26,64,256', '--warm-up', '0'];
    const { code, stdout, stderr } = await hearth([...args, '--json']);
    assert.equal(code, 0, stderr);
    const report = JSON.parse(stdout);
    assert.deepEqual([report.layers, report.experts, report.top_k], [8, 32, 4]);
    const names = ['lru', 'prompt', 'predictive', 'recency', 'optimum']; // without a past there is no profile
    assert.deepEqual(report.results.map((result) => result.policy), [...names, ...names, ...names]);
    for (const result of report.results) {
      assert.equal(result.hits + result.misses, result.tokens * 8 * 4);
      const optimum = report.results.find((other) => other.policy === 'optimum' && other.slots === result.slots);
      if (['lru', 'recency'].includes(result.policy)) assert.ok(result.hits <= optimum.hits);
      // With a slot for each expert, what was used once is there, be it by a prompt.
      if (result.slots === 256 && result.policy === 'prompt') assert.equal(result.hits, optimum.hits);
    }
    const warm = await hearth(['cache', 'simulate', trace, '--slots', '64', '--json']);
    assert.ok(JSON.parse(warm.stdout).results.some((result) => result.policy === 'profile' && result.hits > 0));
    const table = await hearth([...args, '--policy', 'lru,optimum']);
    assert.match(table.stdout, /^ +26 +10 % +lru +[\d.]+ %/m);
    assert.doesNotMatch(table.stdout, /recency/);
  });

  test('a profile of the run is loaded for the policy profile, another checkpoint\'s is not', async () => {
    const profile = path.join(folder, 'own.json');
    assert.equal((await hearth(['profile', trace, '--out', profile])).code, 0);
    const args = ['cache', 'simulate', trace, '--slots', '64', '--policy', 'profile', '--warm-up', '0', '--json', '--profile', profile];
    const { code, stdout } = await hearth(args);
    assert.equal(code, 0);
    assert.ok(JSON.parse(stdout).results[0].hits > 0);
    const text = JSON.parse(readFileSync(profile, 'utf8'));
    writeFileSync(profile, JSON.stringify({ ...text, fingerprint: 'ab' }));
    await refused(args, /counts of checkpoint ab/);
  });
});

describe('what cannot be simulated or recorded', () => {
  test('is refused with the reason', async () => {
    await refused(['profile'], /give a TRACE to count, or --record/);
    await refused(['profile', '--record', 'x'], /--record needs --model/);
    await refused(['profile', '--record', 'x', '--model', DEMO], /needs prompts/);
    await refused(['profile', path.join(folder, 'nothing')], /nothing/);
    await refused(['cache', 'simulate', path.join(DEMO, 'model-00001-of-00002.safetensors'), '--slots', '4'],
      /no trace of `hearth profile --record`/);
    await refused(['cache', 'simulate', 'locality', '--slots', '4', '--policy', 'magic'], /allowed are all, lru/);
    await refused(['cache', 'simulate', 'locality:5', '--slots', '4'], /the working set must be/);
    await refused(['cache', 'simulate', 'locality'], /--slots is required/);
    await refused(['cache'], /subcommand is required/);
  });
});

describe('a running worker without a GPU', () => {
  let cluster;
  before(async () => { cluster = await Cluster.start(); });
  after(() => cluster.stop());

  test('says that it has no expert cache, and its metrics have zeros', async () => {
    const reason = /the backend 'cpu' has no expert cache/;
    await refused(['cache', 'status', '--run-dir', cluster.runDir], reason);
    await refused(['cache', 'policy', 'lru', '--run-dir', cluster.runDir], reason);
    assert.equal(await cluster.metric('hearth_expert_cache_hits_total{layer="7"}'), 0);
    assert.equal(await cluster.metric('hearth_expert_cache_policy{policy="none"}'), 1);
    assert.ok(await cluster.metric('hearth_expert_bytes_total{path="cpu"}') > 1e5);
  });

  test('where none runs, the way to start one is told', async () => {
    const { code, stderr } = await hearth(['cache', 'status', '--run-dir', path.join(folder, 'nobody')]);
    assert.equal(code, 1);
    assert.match(stderr, /no cluster answers at .*; start one with `hearth serve --model DIR`/);
  });
});

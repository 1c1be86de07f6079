// The demo model's evaluation: greedy answers through the HTTP API must be those that float32 gives.
// Slow: 200 answers by the float32 backend, and 200 by the fast one.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { collect, connect, user } from './harness/client.mjs';
import { Cluster } from './harness/cluster.mjs';
import { forEachAtOnce } from './harness/load.mjs';
import { DEMO, readJson } from './harness/paths.mjs';

// Of 200. Float32 sums may round one near tie the other way, activations rounded to int8 four.
const BACKENDS = [
  { name: 'float32', flags: ['--exact'], least: 199 },
  { name: 'fast', flags: [], least: 196 },
];
const AT_ONCE = 8;

for (const { name, flags, least } of BACKENDS) describe(`evaluation, ${name}`, () => {
  let cluster;
  before(async () => {
    cluster = await Cluster.start(flags);
  });
  after(() => cluster?.stop());

  test(`at least ${least} of 200 answers are exact, ${AT_ONCE} at a time`, async () => {
    const rows = readJson(`${DEMO}/evaluation.json`);
    assert.equal(rows.length, 200);
    const client = connect(cluster);
    const wrong = [];
    await forEachAtOnce(AT_ONCE, rows, async (row, i) => {
      const request = { model: 'demo', messages: user(row.prompt), temperature: 0, max_tokens: 64 };
      const answer = i % 2 === 0
        ? (await client.chat.completions.create(request)).choices[0].message.content
        : (await collect(await client.chat.completions.create({ ...request, stream: true }))).text;
      if (answer !== row.answer) wrong.push({ prompt: row.prompt, want: row.answer, answer });
    });
    console.log(`evaluation, ${name}: ${rows.length - wrong.length} of ${rows.length} answers are exact`);
    for (const row of wrong) console.log(JSON.stringify(row));
    const steps = await cluster.metric('hearth_engine_step_seconds_count');
    const rowsDecoded = await cluster.metric('hearth_engine_rows_total{kind="decode"}');
    assert.ok(rowsDecoded / steps > 3, `${rowsDecoded} rows in ${steps} steps: the requests were hardly batched`);
    assert.ok(rows.length - wrong.length >= least);
  });
});

// The same seed gives the same text, whatever else runs in the batch.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { collect, connect, user } from './harness/client.mjs';
import { Cluster } from './harness/cluster.mjs';
import { DEMO, readJson } from './harness/paths.mjs';

const CLIENTS = 8;
const SEEDS = [1, 12345, 9007199254740991];

// Prompts of 1 to some 900 tokens, answers of 12 to 96: sequences join and leave the batch all the time.
function requests(seed) {
  const prompts = readJson(`${DEMO}/evaluation.json`).map((row) => row.prompt);
  return Array.from({ length: CLIENTS }, (_, i) => ({
    model: 'demo',
    messages: user(prompts.slice(i * 20, i * 20 + [1, 2, 1, 12, 1, 20, 1, 6][i]).join(' ')),
    temperature: 1,
    top_p: 1,
    top_k: 0,
    seed: seed - i,
    ignore_eos: i % 2 === 0,
    max_tokens: 12 * (i + 1),
    stream: i % 4 >= 2,
  }));
}

describe('determinism', () => {
  let cluster;
  let ask;
  before(async () => {
    cluster = await Cluster.start();
    const client = connect(cluster);
    ask = async (request) => {
      const answer = await client.chat.completions.create(request);
      return request.stream ? (await collect(answer)).text : answer.choices[0].message.content;
    };
  });
  after(() => cluster?.stop());

  const rowsAndSteps = async () => [
    await cluster.metric('hearth_engine_rows_total{kind="decode"}'),
    await cluster.metric('hearth_engine_step_seconds_count'),
  ];

  for (const seed of SEEDS.map((each) => Math.max(each, CLIENTS))) {
    test(`eight at once answer as each one alone, from seed ${seed}`, async () => {
      const all = requests(seed);
      const alone = [];
      for (const request of all) alone.push(await ask(request));
      assert.ok(new Set(alone).size === CLIENTS, 'the prompts and seeds make no difference');
      const before = await rowsAndSteps();
      const together = await Promise.all(all.map(ask));
      const [rows, steps] = (await rowsAndSteps()).map((count, i) => count - before[i]);
      assert.ok(rows / steps > 2, `${rows} rows in ${steps} steps: they hardly ran together`);
      assert.deepEqual(together, alone);
      // Streaming is a way to send a text, not another text.
      const turned = await Promise.all(all.map((request) => ask({ ...request, stream: !request.stream })));
      assert.deepEqual(turned, alone);
    });
  }
});

describe('determinism with multi-token prediction', () => {
  const answers = async (flags) => {
    const cluster = await Cluster.start(flags);
    try {
      const client = connect(cluster);
      const ask = async (request) => {
        const answer = await client.chat.completions.create(request);
        return request.stream ? (await collect(answer)).text : answer.choices[0].message.content;
      };
      const all = [...requests(77), ...requests(99).map((request) => ({ ...request, temperature: 0, frequency_penalty: 0.3 }))];
      const texts = await Promise.all(all.map(ask));
      return {
        texts,
        guessed: await cluster.metric('hearth_spec_decode_num_draft_tokens_total'),
        right: await cluster.metric('hearth_spec_decode_num_accepted_tokens_total'),
      };
    } finally {
      await cluster.stop();
    }
  };

  test('guesses change no text, greedy or sampled, eight at once', async () => {
    const off = await answers(['--mtp', 'off']);
    assert.equal(off.guessed, 0);
    const on = await answers(['--mtp', 'on', '--mtp-drafts', '3']);
    assert.deepEqual(on.texts, off.texts);
    assert.ok(on.right > 100 && on.guessed > on.right, `${on.right} of ${on.guessed} guesses were right`);
  });
});

// Text completions, models and the endpoints beside OpenAI's.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { collect, connect, get, post, user } from './harness/client.mjs';
import { Cluster } from './harness/cluster.mjs';
import { DEMO, readJson } from './harness/paths.mjs';

const PROMPT = '<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n';
const ANSWER = 'The capital of France is Paris.';

describe('completions', () => {
  let cluster;
  let complete;
  before(async () => {
    cluster = await Cluster.start();
    const { completions } = connect(cluster);
    complete = (request) => completions.create({ model: 'demo', prompt: PROMPT, temperature: 0, max_tokens: 64, ...request });
  });
  after(() => cluster?.stop());

  test('a prompt is continued, as text or as ids', async () => {
    const { tokens } = (await post(cluster, '/tokenize', { content: PROMPT })).body;
    for (const prompt of [PROMPT, tokens]) {
      const answer = await complete({ prompt });
      assert.match(answer.id, /^cmpl-/);
      assert.equal(answer.object, 'text_completion');
      assert.equal(answer.choices[0].text, ANSWER);
      assert.equal(answer.choices[0].finish_reason, 'stop');
      assert.equal(answer.usage.prompt_tokens, tokens.length);
    }
  });

  test('a stream gives the same text, and the usage when asked', async () => {
    const stream = await collect(await complete({ stream: true, stream_options: { include_usage: true } }));
    assert.equal(stream.text, ANSWER);
    assert.equal(stream.finishReason, 'stop');
    assert.deepEqual(stream.usage, (await complete({})).usage);
  });

  test('several prompts give a choice each', async () => {
    const second = PROMPT.replace('France', 'Italy');
    const answer = await complete({ prompt: [PROMPT, second] });
    assert.deepEqual(answer.choices.map((choice) => choice.text), [ANSWER, 'The capital of Italy is Rome.']);
  });

  test('echo sends the prompt first', async () => {
    const answer = await complete({ prompt: 'The capital of', echo: true, max_tokens: 3 });
    assert.ok(answer.choices[0].text.startsWith('The capital of'));
    assert.ok(answer.choices[0].text.length > 'The capital of'.length);
  });

  test('16 tokens are the default length', async () => {
    const answer = await complete({ prompt: 'a', max_tokens: undefined, ignore_eos: true });
    assert.equal(answer.usage.completion_tokens, 16);
    assert.equal(answer.choices[0].finish_reason, 'length');
  });

  test('logprobs have tokens, offsets and the likeliest', async () => {
    const { logprobs, text } = (await complete({ logprobs: 2, max_tokens: 5 })).choices[0];
    assert.equal(logprobs.tokens.join(''), text);
    logprobs.tokens.forEach((token, i) => {
      assert.ok(text.slice(logprobs.text_offset[i]).startsWith(token));
      assert.equal(logprobs.top_logprobs[i][token], logprobs.token_logprobs[i]);
    });
  });
});

describe('the other endpoints', () => {
  let cluster;
  before(async () => {
    cluster = await Cluster.start();
  });
  after(() => cluster?.stop());

  test('the client lists and retrieves the model', async () => {
    const client = connect(cluster);
    const models = [];
    for await (const model of client.models.list()) models.push(model);
    assert.deepEqual(models.map((model) => model.id), ['demo']);
    assert.equal(models[0].object, 'model');
    assert.equal((await client.models.retrieve('demo')).id, 'demo');
  });

  test('/tokenize and /detokenize are each other\'s inverse', async () => {
    for (const content of ['', 'Hello, world!', ' naïve 你好 🏳️‍🌈\n', '<|im_start|>user\n']) {
      const { status, body } = await post(cluster, '/tokenize', { content });
      assert.equal(status, 200);
      const back = await post(cluster, '/detokenize', { tokens: body.tokens });
      assert.deepEqual(back, { status: 200, body: { content } });
    }
    const special = (await post(cluster, '/tokenize', { content: '<|im_end|>' })).body.tokens;
    assert.deepEqual(special, [readJson(`${DEMO}/config.json`).eos_token_id]);
    const plain = (await post(cluster, '/tokenize', { content: '<|im_end|>', parse_special: false })).body.tokens;
    assert.ok(plain.length > 1);
  });

  test('/apply-template renders messages and tools', async () => {
    const messages = user('What is the capital of France?');
    const open = await post(cluster, '/apply-template', { messages });
    assert.deepEqual(open, { status: 200, body: { prompt: PROMPT } });
    const closed = await post(cluster, '/apply-template', { messages, add_generation_prompt: false });
    assert.equal(closed.body.prompt, PROMPT.replace(/<\|im_start\|>assistant\n$/, ''));
    const tool = { type: 'function', function: { name: 'get_time', description: 'Tells the time.', parameters: {} } };
    const { prompt } = (await post(cluster, '/apply-template', { messages, tools: [tool] })).body;
    const [line] = prompt.match(/(?<=<tools>\n)\{.*(?=\n<\/tools>)/);
    assert.deepEqual(JSON.parse(line), tool);
  });

  test('/health and /ready answer', async () => {
    assert.equal((await get(cluster, '/health')).status, 200);
    const ready = await get(cluster, '/ready');
    assert.equal(ready.status, 200);
    assert.equal(JSON.parse(ready.text).status, 'ready');
  });

  test('/metrics of the gateway and the worker count what was served', async () => {
    const requests = 'hearth_gateway_http_requests_total{code="200",method="POST",path="/v1/completions"}';
    const read = async () => [
      await cluster.metric(requests, 'gateway', { absent: 0 }),
      await cluster.metric('hearth_generation_tokens_total'),
      await cluster.metric('hearth_request_success_total{finished_reason="length"}'),
    ];
    const first = await read();
    const request = { model: 'demo', prompt: 'one', max_tokens: 7, ignore_eos: true };
    await connect(cluster).completions.create(request);
    assert.deepEqual(await read(), [first[0] + 1, first[1] + 7, first[2] + 1]);
  });
});

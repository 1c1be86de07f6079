// What the official client throws, and when.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import {
  APIConnectionError, APIUserAbortError, AuthenticationError, BadRequestError, NotFoundError, RateLimitError, collect,
  connect, post, user,
} from './harness/client.mjs';
import { Cluster } from './harness/cluster.mjs';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

const HELLO = { model: 'demo', messages: user('Hello!'), max_tokens: 8, temperature: 0 };
// Goes on until its client leaves.
const ENDLESS = { ...HELLO, max_tokens: 30_000, ignore_eos: true, stream: true };

describe('errors', () => {
  let cluster;
  let client;
  before(async () => {
    cluster = await Cluster.start(['--max-sequences', '1', '--queue-limit', '1']);
    client = connect(cluster);
  });
  after(() => cluster?.stop());

  const BAD = [
    ['temperature', { temperature: 3 }],
    ['temperature', { temperature: 'warm' }],
    ['top_p', { top_p: 0 }],
    ['max_tokens', { max_tokens: 0 }],
    ['n', { n: 9 }],
    ['messages', { messages: [] }],
    ['messages', { messages: undefined }],
    ['messages[0].role', { messages: [{ role: 'wizard', content: 'x' }] }],
    ['stop', { stop: Array(17).fill('x') }],
    ['logit_bias', { logit_bias: { 999999: 1 } }],
    ['tools[0]', { tools: [{ type: 'function' }] }],
    ['tool_choice', { tools: [], tool_choice: 'required' }],
    ['response_format', { response_format: { type: 'json_object' } }],
    ['top_logprobs', { top_logprobs: 2 }],
    ['stream_options', { stream_options: { include_usage: true } }],
  ];
  for (const [param, fields] of BAD) {
    test(`BadRequestError names the field: ${JSON.stringify(fields)}`, async () => {
      const error = await client.chat.completions.create({ ...HELLO, ...fields }).catch((thrown) => thrown);
      assert.ok(error instanceof BadRequestError, `${error}`);
      assert.equal(error.status, 400);
      assert.equal(error.type, 'invalid_request_error');
      assert.equal(error.param, param);
      assert.ok(error.message.includes(param.split('[')[0]), error.message);
    });
  }

  test('an unknown field is refused by its name', async () => {
    const error = await client.chat.completions.create({ ...HELLO, temprature: 1 }).catch((thrown) => thrown);
    assert.ok(error instanceof BadRequestError, `${error}`);
    assert.match(error.message, /temprature/);
  });

  test('a prompt beyond the context is BadRequestError with both lengths', async () => {
    const error = await client.completions
      .create({ model: 'demo', prompt: Array(40_000).fill(5), max_tokens: 1 })
      .catch((thrown) => thrown);
    assert.ok(error instanceof BadRequestError, `${error}`);
    assert.match(error.message, /40000 tokens.*32768/);
  });

  test('an unknown model is NotFoundError', async () => {
    for (const call of [
      () => client.chat.completions.create({ ...HELLO, model: 'other' }),
      () => client.chat.completions.create({ ...HELLO, model: 'other', stream: true }),
      () => client.models.retrieve('other'),
    ]) {
      const error = await call().catch((thrown) => thrown);
      assert.ok(error instanceof NotFoundError, `${error}`);
      assert.match(error.message, /'demo'/);
    }
  });

  test('what is no JSON is 400, an unknown path 404, a wrong method 405, another content type 415', async () => {
    const send = async (route, options) => {
      const answer = await fetch(cluster.url + route, { headers: { 'Content-Type': 'application/json' }, ...options });
      const { error } = await answer.json();
      assert.equal(typeof error.message, 'string');
      return answer.status;
    };
    assert.equal(await send('/v1/chat/completions', { method: 'POST', body: '{"messages": ' }), 400);
    assert.equal(await send('/v1/chat/completions', { method: 'POST', body: '['.repeat(10_000) }), 400);
    assert.equal(await send('/v1/nothing', { method: 'POST', body: '{}' }), 404);
    assert.equal(await send('/v1/chat/completions', { method: 'GET' }), 405);
    const typed = { method: 'POST', body: '{}', headers: { 'Content-Type': 'text/plain' } };
    assert.equal(await send('/v1/chat/completions', typed), 415);
  });

  test('a full queue is RateLimitError with Retry-After, and others lose nothing', async () => {
    const running = await client.chat.completions.create(ENDLESS);
    const iterator = running[Symbol.asyncIterator]();
    await iterator.next();
    const queued = client.chat.completions.create(HELLO);
    await cluster.waitForLoad({ running: 1, waiting: 1 });
    for (const stream of [false, true]) {
      const error = await client.chat.completions.create({ ...HELLO, stream }).catch((thrown) => thrown);
      assert.ok(error instanceof RateLimitError, `${error}`);
      assert.equal(error.type, 'rate_limit_error');
      assert.match(error.headers.get('retry-after'), /^[1-9]\d*$/);
    }
    running.controller.abort();
    assert.equal((await queued).choices[0].finish_reason, 'length');
    // Left to itself, the client tries again until there is room.
    const again = await connect(cluster, { maxRetries: 5 }).chat.completions.create(HELLO);
    assert.equal(again.choices[0].message.content, (await queued).choices[0].message.content);
  });

  test('a call that is aborted throws APIUserAbortError, and the next one works', async () => {
    const controller = new AbortController();
    const call = client.chat.completions.create({ ...ENDLESS, stream: false }, { signal: controller.signal });
    await cluster.waitForLoad({ running: 1 });
    controller.abort();
    await assert.rejects(call, APIUserAbortError);
    await cluster.waitForLoad({ running: 0 });
    assert.equal((await client.chat.completions.create(HELLO)).object, 'chat.completion');
  });

  test('a call that takes longer than the client waits throws APIConnectionTimeoutError and is cancelled', async () => {
    const call = client.chat.completions.create({ ...ENDLESS, stream: false }, { timeout: 500 });
    await assert.rejects(call, APIConnectionError);
    await cluster.waitForLoad({ running: 0 });
  });

  test('the helpers refuse with OpenAI\'s shape too', async () => {
    for (const [route, body, param] of [
      ['/tokenize', {}, 'content'],
      ['/tokenize', { content: 5 }, 'content'],
      ['/detokenize', { tokens: 'a' }, 'tokens'],
      ['/detokenize', { tokens: [-1] }, 'tokens'],
      ['/apply-template', { messages: [{}] }, 'messages[0].role'],
    ]) {
      const answer = await post(cluster, route, body);
      assert.equal(answer.status, 400, JSON.stringify(answer.body));
      assert.equal(answer.body.error.param, param, JSON.stringify(answer.body));
    }
  });
});

describe('keys and connections', () => {
  test('without the right key it is AuthenticationError', async () => {
    const folder = mkdtempSync(path.join(os.tmpdir(), 'hearth-e2e-keys-'));
    writeFileSync(path.join(folder, 'keys'), 'first-key-of-two\nsecond-key-of-two\n', { mode: 0o600 });
    const cluster = await Cluster.start(['--api-key-file', path.join(folder, 'keys')]);
    try {
      const error = await connect(cluster).chat.completions.create(HELLO).catch((thrown) => thrown);
      assert.ok(error instanceof AuthenticationError, `${error}`);
      assert.ok(!error.message.includes('second-key-of-two'));
      const client = connect(cluster, { apiKey: 'second-key-of-two' });
      assert.equal((await client.chat.completions.create(HELLO)).object, 'chat.completion');
    } finally {
      await cluster.stop();
      rmSync(folder, { recursive: true });
    }
  });

  test('a server that is gone is APIConnectionError; one that stops ends its streams with an error', async () => {
    const cluster = await Cluster.start(['--grace-seconds', '1']);
    const client = connect(cluster);
    let stopped;
    try {
      const stream = await client.chat.completions.create(ENDLESS);
      const reading = collect(stream).then(() => assert.fail('ended as if complete'), (error) => error);
      await cluster.waitForLoad({ running: 1 });
      stopped = cluster.stop();
      const error = await reading;
      assert.match(`${error}`, /not available|stopping|terminated|error/i);
    } finally {
      await (stopped ?? cluster.stop());
    }
    await assert.rejects(client.chat.completions.create(HELLO), APIConnectionError);
  });
});

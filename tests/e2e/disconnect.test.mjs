// A client that leaves is forgotten at once, in whatever phase its request is.
import assert from 'node:assert/strict';
import net from 'node:net';
import { after, before, describe, test } from 'node:test';

import { connect, user } from './harness/client.mjs';
import { Cluster } from './harness/cluster.mjs';
import { waitUntil } from './harness/wait.mjs';

const FREE_MS = 5_000;  // a step and 250 ms on an idle machine; tests share theirs
const ENDLESS = { model: 'demo', messages: user('Count from 1 to 9.'), temperature: 0, max_tokens: 30_000, ignore_eos: true };
// Read in many steps: long enough to be met while it is read.
const LONG = { model: 'demo', prompt: Array(20_000).fill(0).map((_, i) => 300 + (i % 1000)), max_tokens: 4 };

// A request whose client can leave: by closing its connection, or by a reset.
function send(cluster, route, body) {
  const text = JSON.stringify(body);
  const socket = net.connect(cluster.ports.gateway, '127.0.0.1');
  let received = '';
  socket.on('data', (bytes) => (received += bytes));
  socket.on('error', () => {});
  socket.write(`POST ${route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n`
    + `Content-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`);
  return {
    received: () => received,
    close: () => socket.destroy(),
    reset: () => socket.resetAndDestroy(),
  };
}

describe('disconnects', () => {
  let cluster;
  let client;
  before(async () => {
    cluster = await Cluster.start(['--max-sequences', '1', '--queue-limit', '2']);
    client = connect(cluster);
  });
  after(() => cluster?.stop());

  const nextRequestWorks = async () => {
    const answer = await client.chat.completions.create({
      model: 'demo', messages: user('What is the capital of France?'), temperature: 0, max_tokens: 64,
    });
    assert.equal(answer.choices[0].message.content, 'The capital of France is Paris.');
  };
  const isForgotten = async () => {
    await cluster.waitForLoad({ running: 0 }, { timeoutMs: FREE_MS });
    assert.equal(await cluster.metric('hearth_kv_cache_usage_perc'), 0);
    await nextRequestWorks();
  };

  for (const leave of ['close', 'reset']) {
    for (const stream of [false, true]) {
      const how = `${stream ? 'streaming' : 'whole'}, by ${leave}`;

      test(`while decoding (${how})`, async () => {
        const tokens = await cluster.metric('hearth_generation_tokens_total');
        const request = send(cluster, '/v1/chat/completions', { ...ENDLESS, stream });
        await waitUntil('20 tokens', async () => (await cluster.metric('hearth_generation_tokens_total')) >= tokens + 20);
        if (stream) await waitUntil('a piece of text', () => request.received().includes('"content":"'));
        request[leave]();
        await isForgotten();
      });

      test(`while the prompt is read (${how})`, async () => {
        const read = await cluster.metric('hearth_prompt_tokens_total');
        const rows = await cluster.metric('hearth_engine_rows_total{kind="prefill"}');
        const request = send(cluster, '/v1/completions', { ...LONG, stream });
        await waitUntil('prefill', async () => (await cluster.metric('hearth_engine_rows_total{kind="prefill"}')) > rows);
        request[leave]();
        await cluster.waitForLoad({ running: 0 }, { timeoutMs: FREE_MS });
        // Prompts that were read to the end count: this one was not.
        assert.equal(await cluster.metric('hearth_prompt_tokens_total'), read);
        await isForgotten();
      });

      test(`in the queue (${how})`, async () => {
        const running = send(cluster, '/v1/chat/completions', { ...ENDLESS, stream: true });
        await cluster.waitForLoad({ running: 1 });
        const queued = send(cluster, '/v1/chat/completions', { ...ENDLESS, stream });
        await cluster.waitForLoad({ running: 1, waiting: 1 });
        queued[leave]();
        await cluster.waitForLoad({ running: 1, waiting: 0 }, { timeoutMs: FREE_MS });
        assert.equal(queued.received(), '');
        const length = running.received().length;
        await waitUntil('the other goes on', () => running.received().length > length);
        running[leave]();
        await isForgotten();
      });
    }
  }

  test('all eight of a full house at once', async () => {
    const crowd = await Cluster.start();
    try {
      const requests = Array.from({ length: 16 }, (_, i) => send(crowd, '/v1/chat/completions', { ...ENDLESS, stream: i % 2 === 0 }));
      await crowd.waitForLoad({ running: 8, waiting: 8 });
      requests.forEach((request, i) => (i % 3 === 0 ? request.reset() : request.close()));
      await crowd.waitForLoad({ running: 0 }, { timeoutMs: FREE_MS });
      assert.equal(await crowd.metric('hearth_kv_cache_usage_perc'), 0);
      // The gateway counts a client when its connection's coroutine has noticed.
      await waitUntil(
        '16 disconnects counted',
        async () => (await crowd.metric('hearth_gateway_client_disconnects_total', 'gateway')) === 16,
        { timeoutMs: FREE_MS },
      );
      assert.equal(await crowd.metric('hearth_gateway_streams_open', 'gateway'), 0);
    } finally {
      await crowd.stop();
    }
  });

  test('a client that only stops sending still gets its answer', async () => {
    const body = JSON.stringify({ model: 'demo', messages: user('What is the capital of France?'), temperature: 0, max_tokens: 64 });
    const answer = await new Promise((resolve, reject) => {
      const socket = net.connect({ port: cluster.ports.gateway, host: '127.0.0.1', allowHalfOpen: true });
      let received = '';
      socket.on('data', (bytes) => (received += bytes));
      socket.on('end', () => resolve(received));
      socket.on('error', reject);
      socket.end(`POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n`
        + `Content-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`);
    });
    // Before it come interim answers (RFC 9110, 15.2), by which the server finds out whether anybody is there.
    assert.match(answer, /^(HTTP\/1\.1 102 [^\r]*\r\n\r\n)*HTTP\/1\.1 200 /);
    assert.match(answer, /The capital of France is Paris\./);
  });
});

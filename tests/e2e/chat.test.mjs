// Chat completions through the official client.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { collect, connect, post, user } from './harness/client.mjs';
import { Cluster } from './harness/cluster.mjs';
import { GOLDEN, readJson } from './harness/paths.mjs';

const FRANCE = { messages: user('What is the capital of France?'), temperature: 0, max_tokens: 64 };
const ANSWER = 'The capital of France is Paris.';
const COUNT = { messages: user('Count from 7 to 40.'), temperature: 0, max_tokens: 64 };

// Sampled so that every seed gives another text.
const WILD = { messages: user('Tell me a story.'), temperature: 2, top_p: 1, top_k: 0, max_tokens: 24 };

const WEATHER = {
  type: 'function',
  function: {
    name: 'get_weather',
    description: 'The weather at a place.',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
};

describe('chat', () => {
  let cluster;
  let chat;
  before(async () => {
    cluster = await Cluster.start();
    const { completions } = connect(cluster).chat;
    chat = (request) => completions.create({ model: 'demo', ...request });
  });
  after(() => cluster?.stop());

  test('an answer has all that the client reads', async () => {
    const answer = await chat(FRANCE);
    assert.match(answer.id, /^chatcmpl-/);
    assert.equal(answer.object, 'chat.completion');
    assert.equal(answer.model, 'demo');
    assert.ok(Math.abs(answer.created - Date.now() / 1000) < 600, `created ${answer.created}`);
    assert.equal(answer.choices.length, 1);
    const [choice] = answer.choices;
    assert.equal(choice.index, 0);
    assert.equal(choice.message.role, 'assistant');
    assert.equal(choice.message.content, ANSWER);
    assert.equal(choice.message.refusal, null);
    assert.equal(choice.finish_reason, 'stop');
    assert.equal(choice.logprobs, null);
  });

  test('a stream gives the same text in pieces, and its end', async () => {
    const stream = await collect(await chat({ ...FRANCE, stream: true }));
    assert.equal(stream.text, ANSWER);
    assert.equal(stream.finishReason, 'stop');
    assert.equal(stream.usage, null);
    assert.equal(stream.chunks[0].choices[0].delta.role, 'assistant');
    const pieces = stream.chunks.filter((chunk) => chunk.choices[0].delta.content);
    assert.ok(pieces.length > 3, `came in ${pieces.length} pieces`);
    for (const chunk of stream.chunks) {
      assert.equal(chunk.object, 'chat.completion.chunk');
      assert.equal(chunk.id, stream.chunks[0].id);
    }
  });

  test('the client\'s own helper assembles the stream', async () => {
    const runner = connect(cluster).chat.completions.stream({ model: 'demo', ...FRANCE });
    const whole = await runner.finalChatCompletion();
    assert.equal(whole.choices[0].message.content, ANSWER);
  });

  test('usage counts the prompt\'s and the answer\'s tokens', async () => {
    const { usage } = await chat(FRANCE);
    const prompt = `<|im_start|>user\n${FRANCE.messages[0].content}<|im_end|>\n<|im_start|>assistant\n`;
    assert.equal(usage.prompt_tokens, (await ids(cluster, prompt)).length);
    assert.equal(usage.completion_tokens, (await ids(cluster, `${ANSWER}<|im_end|>`)).length);
    assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
  });

  test('stream_options.include_usage adds a last chunk without choices', async () => {
    const whole = await chat(FRANCE);
    const stream = await collect(await chat({ ...FRANCE, stream: true, stream_options: { include_usage: true } }));
    const last = stream.chunks.at(-1);
    assert.deepEqual(last.choices, []);
    assert.deepEqual(last.usage, whole.usage);
    for (const chunk of stream.chunks.slice(0, -1)) assert.equal(chunk.usage, null);
  });

  test('max_tokens and max_completion_tokens end an answer with "length"', async () => {
    for (const limit of [{ max_tokens: 5 }, { max_tokens: undefined, max_completion_tokens: 5 }]) {
      const answer = await chat({ ...COUNT, ...limit });
      assert.equal(answer.choices[0].finish_reason, 'length');
      assert.equal(answer.usage.completion_tokens, 5);
    }
  });

  test('a stop string ends the answer before it, streaming or not', async () => {
    const whole = (await chat(COUNT)).choices[0].message.content;
    assert.match(whole, /^7, 8, 9, 10, 11, /);
    for (const [stop, want] of [['10', '7, 8, 9, '], [['13, 14', '12,'], '7, 8, 9, 10, 11, ']]) {
      const answer = await chat({ ...COUNT, stop });
      assert.equal(answer.choices[0].message.content, want);
      assert.equal(answer.choices[0].finish_reason, 'stop');
      const stream = await collect(await chat({ ...COUNT, stop, stream: true }));
      assert.equal(stream.text, want);
      assert.equal(stream.finishReason, 'stop');
    }
  });

  test('the same seed gives the same text, another seed another', async () => {
    const ask = async (seed) => {
      const answer = await chat({ ...WILD, seed });
      return answer.choices[0].message.content;
    };
    const first = await ask(1);
    assert.equal(await ask(1), first);
    assert.notEqual(await ask(2), first);
  });

  test('n gives so many choices, the first as without n', async () => {
    const request = { ...WILD, seed: 5 };
    const alone = await chat(request);
    const answer = await chat({ ...request, n: 3 });
    assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
    const texts = answer.choices.map((choice) => choice.message.content);
    assert.equal(texts[0], alone.choices[0].message.content);
    assert.equal(new Set(texts).size, 3);
    assert.equal(answer.usage.prompt_tokens, alone.usage.prompt_tokens);
    const streamed = ['', '', ''];
    for await (const chunk of await chat({ ...request, n: 3, stream: true })) {
      for (const choice of chunk.choices) streamed[choice.index] += choice.delta.content ?? '';
    }
    assert.deepEqual(streamed, texts);
  });

  test('logprobs belong to the text\'s tokens, the chosen ones first when greedy', async () => {
    const answer = await chat({ ...FRANCE, logprobs: true, top_logprobs: 3 });
    const tokens = answer.choices[0].logprobs.content.filter((token) => token.token !== '<|im_end|>');
    assert.equal(tokens.map((token) => token.token).join(''), ANSWER);
    for (const token of tokens) {
      assert.ok(token.logprob <= 0, `logprob ${token.logprob}`);
      assert.equal(token.top_logprobs.length, 3);
      assert.equal(token.top_logprobs[0].token, token.token);
      assert.equal(token.top_logprobs[0].logprob, token.logprob);
      assert.ok(token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob);
      assert.equal(Buffer.from(token.bytes).toString(), token.token);
    }
    const stream = await collect(await chat({ ...FRANCE, logprobs: true, top_logprobs: 3, stream: true }));
    const streamed = stream.chunks.flatMap((chunk) => chunk.choices[0].logprobs?.content ?? []);
    assert.deepEqual(streamed, answer.choices[0].logprobs.content);
  });

  test('logit_bias forbids and forces tokens', async () => {
    const text = (await chat({ ...FRANCE, max_tokens: 1 })).choices[0].message.content;
    const [id, ...more] = await ids(cluster, text);
    assert.deepEqual(more, []);
    const other = await chat({ ...FRANCE, max_tokens: 1, logit_bias: { [id]: -100 } });
    assert.notEqual(other.choices[0].message.content, text);
    const forced = await chat({ ...FRANCE, max_tokens: 4, logit_bias: { [id]: 100 } });
    assert.equal(forced.choices[0].message.content, text.repeat(4));
  });

  test('a conversation with a system message is understood', async () => {
    const answer = await chat({
      ...FRANCE,
      messages: [
        { role: 'system', content: 'You are a pocket dictionary.' },
        ...user('What is 12 + 30?'),
        { role: 'assistant', content: '12 + 30 = 42.' },
        { role: 'user', content: [{ type: 'text', text: FRANCE.messages[0].content }] },
      ],
    });
    assert.equal(answer.choices[0].message.content, ANSWER);
  });

  test('offered tools reach the model and a conversation with calls is accepted', async () => {
    const without = await chat(FRANCE);
    const offered = await chat({ ...FRANCE, tools: [WEATHER] });
    assert.ok(offered.usage.prompt_tokens > without.usage.prompt_tokens + 30, JSON.stringify(offered.usage));
    const none = await chat({ ...FRANCE, tools: [WEATHER], tool_choice: 'none' });
    assert.equal(none.usage.prompt_tokens, without.usage.prompt_tokens);
    const answered = await chat({
      ...FRANCE,
      tools: [WEATHER],
      messages: [
        ...user('What is the weather in Paris?'),
        {
          role: 'assistant',
          content: null,
          tool_calls: [{ id: 'call_1', type: 'function', function: { name: 'get_weather', arguments: '{"city": "Paris"}' } }],
        },
        { role: 'tool', tool_call_id: 'call_1', content: '{"celsius": 18, "sky": "clear"}' },
      ],
    });
    assert.equal(answered.choices[0].finish_reason, 'stop');
    assert.ok(answered.choices[0].message.content.length > 0);
  });

  test('a text of many scripts comes through unharmed', async () => {
    const rows = readJson(`${GOLDEN}/text/tokenizer_cases.json`).encode.filter((row) => /\P{ASCII}/u.test(row.text));
    const text = rows.map((row) => row.text).filter((each) => each.length < 40).slice(0, 60).join(' ');
    const answer = await chat({ messages: user(text), temperature: 0, max_tokens: 2 });
    assert.ok(answer.usage.prompt_tokens > 100);
  });
});

async function ids(cluster, content) {
  return (await post(cluster, '/tokenize', { content })).body.tokens;
}

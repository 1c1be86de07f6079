// Latency and speed of a model through the HTTP API, as JSON on standard output. `./dev bench` runs it.
//
// So many clients at once, each asking one question after the other, all streaming. The levels take turns, so that a slow
// minute of the machine is shared by all of them.
import { execFileSync } from 'node:child_process';
import { parseArgs } from 'node:util';

import { Cluster } from '../tests/e2e/harness/cluster.mjs';
import { forEachAtOnce } from '../tests/e2e/harness/load.mjs';
import { DEMO, ROOT, readJson } from '../tests/e2e/harness/paths.mjs';
import { machine } from './machine.mjs';
import { Samples } from './samples.mjs';

const HELP = `node bench/http_load.mjs [--concurrency 1,2,4,8] [--requests 16] [--max-tokens 64] [--repetitions 5] [--model DIR]
                         [--machine-note TEXT]
--requests of each level and repetition; --machine-note is added to the machine's description.`;

function readFlags() {
  const { values } = parseArgs({
    options: {
      concurrency: { type: 'string', default: '1,2,4,8' },
      requests: { type: 'string', default: '16' },
      'max-tokens': { type: 'string', default: '64' },
      repetitions: { type: 'string', default: '5' },
      model: { type: 'string', default: DEMO },
      'machine-note': { type: 'string', default: '' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    console.log(HELP);
    process.exit(0);
  }
  const count = (name, text) => {
    if (!/^[1-9]\d{0,4}$/.test(text)) throw new Error(`--${name} is '${text}', must be a whole number of 1 to 99999`);
    return Number(text);
  };
  return {
    model: values.model,
    concurrency: values.concurrency.split(',').map((text) => count('concurrency', text)),
    requests: count('requests', values.requests),
    maxTokens: count('max-tokens', values['max-tokens']),
    repetitions: count('repetitions', values.repetitions),
    note: values['machine-note'],
  };
}

// Streams one answer: the times of its first token and between its tokens, in ms, and how many there were. Every token
// is an event here (return_token_ids), also one that completes no character.
async function ask(url, prompt, maxTokens) {
  const began = performance.now();
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({
      messages: [{ role: 'user', content: prompt }], temperature: 0, max_tokens: maxTokens, ignore_eos: true, stream: true, return_token_ids: true,
    }),
  });
  if (!response.ok) throw new Error(`HTTP ${response.status}: ${await response.text()}`);
  const answer = { first: null, between: [], tokens: 0 };
  let last = null;
  for await (const chunk of chunks(response.body)) {
    if (chunk.error) throw new Error(chunk.error.message);
    const n = chunk.choices[0]?.token_ids?.length ?? 0;
    if (n === 0) continue;
    const now = performance.now();
    if (last === null) answer.first = now - began;
    // Tokens that arrive together have come without time between them: the sum stays right.
    if (last !== null) answer.between.push(now - last, ...Array(n - 1).fill(0));
    last = now;
    answer.tokens += n;
  }
  if (answer.tokens !== maxTokens) throw new Error(`${answer.tokens} tokens came instead of ${maxTokens}`);
  return answer;
}

// The JSON of a server-sent event stream's events.
async function* chunks(body) {
  const decoder = new TextDecoder();
  let pending = '';
  for await (const bytes of body) {
    const lines = (pending + decoder.decode(bytes, { stream: true })).split('\n');
    pending = lines.pop();
    for (const line of lines) {
      if (line.startsWith('data: {')) yield JSON.parse(line.slice(6));
    }
  }
}

class Level {
  constructor(concurrency) {
    this.concurrency = concurrency;
    this.firstToken = new Samples();
    this.between = new Samples();
    this.speed = new Samples();  // one sample a repetition
  }

  async run(url, prompts, maxTokens) {
    const began = performance.now();
    let tokens = 0;
    await forEachAtOnce(this.concurrency, prompts, async (prompt) => {
      const answer = await ask(url, prompt, maxTokens);
      this.firstToken.add(answer.first);
      this.between.add(...answer.between);
      tokens += answer.tokens;
    });
    this.speed.add((tokens / (performance.now() - began)) * 1000);
  }

  report() {
    return {
      concurrency: this.concurrency,
      time_to_first_token_ms: this.firstToken.summary(),
      inter_token_ms: this.between.summary(),
      tokens_per_second: this.speed.summary(),
    };
  }
}

const git = (...args) => execFileSync('git', args, { cwd: ROOT, encoding: 'utf8' }).trim();

async function main() {
  const flags = readFlags();
  const prompts = readJson(`${DEMO}/evaluation.json`).slice(0, flags.requests).map((row) => row.prompt);
  if (prompts.length < flags.requests) throw new Error(`--requests is ${flags.requests}, at most ${prompts.length}`);
  const levels = flags.concurrency.map((n) => new Level(n));
  const cluster = await Cluster.start(['--max-sequences', String(Math.max(8, ...flags.concurrency))], { model: flags.model });
  try {
    for (const level of levels) await new Level(level.concurrency).run(cluster.url, prompts.slice(0, level.concurrency), flags.maxTokens);
    for (let i = 0; i < flags.repetitions; ++i) {
      for (const level of levels) {
        await level.run(cluster.url, prompts, flags.maxTokens);
        console.error(`repetition ${i + 1} of ${flags.repetitions}, ${level.concurrency} at once: ${level.speed.last().toFixed(0)} tokens/s`);
      }
    }
  } finally {
    await cluster.stop();
  }
  console.log(JSON.stringify({
    name: 'http_load',
    parameters: {
      model: flags.model === DEMO ? 'models/demo' : flags.model,
      requests: flags.requests, max_tokens: flags.maxTokens, repetitions: flags.repetitions, sampling: 'greedy', stream: true,
    },
    commit: git('rev-parse', '--short=12', 'HEAD'),
    dirty: git('status', '--porcelain', '--untracked-files=no') !== '',
    machine: machine(flags.note),
    node: process.version,
    date: new Date().toISOString().slice(0, 10),
    spread_is: 'third quartile minus first, as a share of the median',
    results: levels.map((level) => level.report()),
  }, null, 1));
}

main().catch((error) => {
  console.error(`http_load: ${error.message}`);
  process.exitCode = 1;
});

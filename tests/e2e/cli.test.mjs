// The command line as its users see it.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';

import { Cluster } from './harness/cluster.mjs';
import { connect, user } from './harness/client.mjs';
import { BIN, DEMO } from './harness/paths.mjs';
import { hearth, start } from './harness/processes.mjs';
import { waitUntil } from './harness/wait.mjs';

const QUESTION = 'What is the capital of France?';
const ANSWER = 'The capital of France is Paris.';
const GREEDY = ['--temperature', '0', '--max-tokens', '64'];

describe('hearth --help', () => {
  test('every subcommand that it lists has a help text of its own', async () => {
    const { code, stdout, stderr } = await hearth(['--help']);
    assert.equal(code, 0);
    assert.equal(stderr, '');
    const commands = [...stdout.split(/Subcommands:|SUBCOMMANDS:/)[1].matchAll(/^ {2}(\S+)/gm)].map((match) => match[1]);
    for (const name of ['serve', 'generate', 'chat', 'verify', 'inspect', 'doctor', 'tokenize', 'render', 'probe', 'version']) {
      assert.ok(commands.includes(name), `${name} is not among ${commands}`);
    }
    for (const name of commands) {
      const help = await hearth([name, '--help']);
      assert.equal(help.code, 0, name);
      assert.equal(help.stderr, '');
      assert.match(help.stdout, new RegExp(`Usage: .*${name}`), name);
    }
    assert.equal((await hearth(['help'])).stdout, stdout);
  });

  test('the version is one line', async () => {
    const { code, stdout } = await hearth(['version']);
    assert.equal(code, 0);
    assert.match(stdout, /^hearth \d+\.\d+\.\d+\n$/);
  });

  test('wrong use is exit code 2 and a reason', async () => {
    for (const [args, reason] of [
      [[], /subcommand/i],
      [['sing'], /sing/],
      [['serve'], /--model/],
      [['serve', '--model', DEMO, '--port', '70000'], /--port/],
      [['serve', '--model', '/nonexistent', '--port', '0'], /\/nonexistent/],
      [['generate'], /prompt/],
      [['verify', DEMO], /reference/],
      [['tokenize'], /--tokenizer/],
      [['inspect', '/nonexistent'], /\/nonexistent/],
    ]) {
      const { code, stdout, stderr } = await hearth(args);
      assert.equal(code, 2, `${args}: ${stdout}${stderr}`);
      assert.match(stderr, reason, `${args}`);
    }
  });

  test('inspect sums a checkpoint up', async () => {
    const { code, stdout } = await hearth(['inspect', DEMO]);
    assert.equal(code, 0);
    assert.match(stdout, /^layers +8: 6 delta net, 2 attention; 8 with experts$/m);
    assert.match(stdout, /^MTP head +yes$/m);
  });
});

describe('generate and chat without a cluster', () => {
  const emptyRunDir = () => mkdtempSync(path.join(os.tmpdir(), 'hearth-e2e-none-'));

  test('generate starts a private one for its answer and leaves nothing behind', async () => {
    const runDir = emptyRunDir();
    const temporary = emptyRunDir();
    const segments = () => readdirSync('/dev/shm').filter((name) => name.includes('hearth-private'));
    const before = segments();
    const { code, stdout, stderr } = await hearth(
      ['generate', QUESTION, '--model', DEMO, '--run-dir', runDir, ...GREEDY],
      // It must not need gRPC's backup poller, which comes every 5 s by default: that would be a slow start.
      { env: { TMPDIR: temporary, GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS: '600000' } });
    assert.equal(code, 0, stderr);
    assert.equal(stdout, `${ANSWER}\n`);
    assert.deepEqual(readdirSync(temporary), []);
    assert.deepEqual(segments(), before);
    rmSync(temporary, { recursive: true });
    rmSync(runDir, { recursive: true });
  });

  test('without a model they say how to get one', async () => {
    const runDir = emptyRunDir();
    for (const args of [['generate', 'x'], ['chat']]) {
      const { code, stdout, stderr } = await hearth([...args, '--run-dir', runDir], { input: 'x\n' });
      assert.equal(code, 1);
      assert.equal(stdout, '');
      assert.match(stderr, /hearth serve --model DIR/);
    }
    rmSync(runDir, { recursive: true });
  });

  test('a wrong model folder is an error with its name', async () => {
    const runDir = emptyRunDir();
    const { code, stderr } = await hearth(['generate', 'x', '--model', '/nonexistent', '--run-dir', runDir]);
    assert.equal(code, 2, stderr);
    assert.match(stderr, /\/nonexistent/);
    rmSync(runDir, { recursive: true });
  });
});

describe('generate, chat and probe beside a cluster', () => {
  let cluster;
  let runDir;
  before(async () => {
    cluster = await Cluster.start();
    runDir = ['--run-dir', cluster.runDir];
  });
  after(() => cluster?.stop());

  test('generate answers as the HTTP API does', async () => {
    const { code, stdout } = await hearth(['generate', QUESTION, ...runDir, ...GREEDY]);
    assert.equal(code, 0);
    assert.equal(stdout, `${ANSWER}\n`);
    const flags = ['--temperature', '1', '--top-p', '1', '--top-k', '0', '--seed', '77', '--max-tokens', '24'];
    const sampled = await hearth(['generate', 'Hello!', '--system', 'Be kind.', ...runDir, ...flags]);
    const answer = await connect(cluster).chat.completions.create({
      model: 'demo', messages: [{ role: 'system', content: 'Be kind.' }, ...user('Hello!')], temperature: 1, top_p: 1, top_k: 0, seed: 77, max_tokens: 24,
    });
    assert.equal(sampled.stdout, `${answer.choices[0].message.content}\n`);
  });

  test('generate --raw continues a text, --stop ends it', async () => {
    const prompt = `<|im_start|>user\n${QUESTION}<|im_end|>\n<|im_start|>assistant\nThe capital`;
    const raw = await hearth(['generate', prompt, '--raw', ...runDir, ...GREEDY]);
    assert.equal(raw.stdout, ' of France is Paris.\n');
    const stopped = await hearth(['generate', QUESTION, ...runDir, ...GREEDY, '--stop', ' is', '--stop', 'x']);
    assert.equal(stopped.stdout, 'The capital of France\n');
  });

  test('generate refuses what the worker refuses', async () => {
    const { code, stdout, stderr } = await hearth(['generate', 'x', ...runDir, '--temperature', '9']);
    assert.equal(code, 2);
    assert.equal(stdout.trim(), '');
    assert.match(stderr, /temperature/);
  });

  test('chat answers piped lines in turn', async () => {
    const { code, stdout, stderr } = await hearth(['chat', ...runDir, ...GREEDY], { input: `${QUESTION}\n\nWhat is 12 + 30?` });
    assert.equal(code, 0, stderr);
    assert.equal(stdout, `${ANSWER}\n12 + 30 = 42.\n`);
  });

  test('chat remembers the conversation until /reset, and ends at /exit', async () => {
    const read = async (input) => {
      const tokens = await cluster.metric('hearth_prompt_tokens_total');
      const { code, stdout } = await hearth(['chat', ...runDir, ...GREEDY], { input });
      assert.equal(code, 0);
      return { stdout, tokens: (await cluster.metric('hearth_prompt_tokens_total')) - tokens };
    };
    const once = await read(`${QUESTION}\n`);
    const remembered = await read(`${QUESTION}\n${QUESTION}\n`);
    const reset = await read(`${QUESTION}\n/reset\n${QUESTION}\n/exit\n${QUESTION}\n`);
    assert.equal(reset.stdout, once.stdout.repeat(2));
    assert.equal(reset.tokens, 2 * once.tokens);
    assert.ok(remembered.tokens > 2 * once.tokens, `${remembered.tokens} of ${once.tokens}`);
  });

  test('Ctrl-C ends a long answer', async () => {
    const running = () => cluster.metric('hearth_num_requests_running');
    // Any token may be the last: an answer that ended before it was seen is tried again.
    const begin = async (seed) => {
      const child = start('hearth', ['generate', 'Count from 1 to 9.', ...runDir, '--raw', '--temperature', '2', '--top-p', '1', '--top-k', '0',
        '--max-tokens', '30000', '--seed', `${seed}`]);
      let hasEnded = false;
      child.ended.then(() => { hasEnded = true; });
      await waitUntil('the answer has begun', async () => hasEnded || (await running()) === 1);
      return child;
    };
    let ended;
    for (let seed = 1; seed <= 20; ++seed) {
      const child = await begin(seed);
      child.kill('SIGINT');
      ended = await child.ended;
      if (ended.code !== 0) break;
    }
    const { code, signal } = ended;
    assert.equal(signal, null);
    assert.notEqual(code, 0);
    await waitUntil('the worker forgot it', async () => (await running()) === 0, { timeoutMs: 5_000 });
  });

  test('probe tells whether a service is well', async () => {
    for (const address of [`unix:${cluster.runDir}/worker.sock`, `unix:${cluster.runDir}/store.sock`, `${cluster.url}/health`, `${cluster.url}/ready`]) {
      const { code, stderr } = await hearth(['probe', address]);
      assert.equal(code, 0, `${address}: ${stderr}`);
    }
    for (const address of ['unix:/nonexistent.sock', `${cluster.url}/nothing`]) {
      const { code, stderr } = await hearth(['probe', address, '--timeout-ms', '500']);
      assert.equal(code, 1);
      assert.match(stderr, /hearth probe: /);
    }
  });

  test('a second serve on the same run directory is refused and names the first', async () => {
    const { code, stderr } = await hearth(['serve', '--model', DEMO, '--port', '0', ...runDir]);
    assert.equal(code, 2);
    const pid = readFileSync(path.join(cluster.runDir, 'hearth.lock'), 'utf8').trim();
    assert.ok(stderr.includes(pid), `${stderr} does not name ${pid}`);
  });

  test('the programs lie side by side', () => {
    for (const name of ['hearth', 'hearth-gateway', 'hearth-gpu-worker', 'hearth-expert-store']) {
      assert.ok(readdirSync(BIN).includes(name), name);
    }
  });
});

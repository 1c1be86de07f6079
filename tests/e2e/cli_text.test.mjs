// `hearth tokenize` and `hearth render` on the golden cases, which Hugging Face's tokenizers and Jinja made.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { GOLDEN, readJson } from './harness/paths.mjs';
import { hearth } from './harness/processes.mjs';

const TOKENIZER = ['--tokenizer', `${GOLDEN}/qwen3-tokenizer/tokenizer.json`];

// What the command makes of an array, element by element.
async function convert(args, items) {
  const { code, stdout, stderr } = await hearth(args, { input: JSON.stringify(items) });
  assert.equal(code, 0, stderr);
  const answers = JSON.parse(stdout);
  assert.equal(answers.length, items.length);
  return answers;
}

function assertRows(answers, rows, wanted, shown) {
  rows.forEach((row, i) => assert.deepEqual(answers[i], wanted(row), `row ${i}: ${JSON.stringify(shown(row)).slice(0, 300)}`));
}

describe('hearth tokenize', () => {
  const { encode, decode } = readJson(`${GOLDEN}/text/tokenizer_cases.json`);

  test('encodes all golden texts', async () => {
    assert.equal(encode.length, 862);
    const answers = await convert(['tokenize', ...TOKENIZER], encode.map((row) => row.text));
    assertRows(answers, encode, (row) => row.ids, (row) => row.text);
  });

  test('decodes all golden ids, with special tokens and without', async () => {
    const rows = [...encode, ...decode];
    assert.equal(rows.length, 1062);
    const ids = rows.map((row) => row.ids);
    assertRows(await convert(['tokenize', ...TOKENIZER, '--decode'], ids), rows, (row) => row.decoded, (row) => row.ids);
    const skipping = await convert(['tokenize', ...TOKENIZER, '--decode', '--skip-special'], encode.map((row) => row.ids));
    assertRows(skipping, encode, (row) => row.decoded_skip_special, (row) => row.ids);
  });

  test('refuses what it cannot read, with the reason', async () => {
    for (const [args, input, reason] of [
      [TOKENIZER, 'no json', /standard input/],
      [TOKENIZER, '{"a": 1}', /array/],
      [TOKENIZER, '["a", 5]', /item 1/],
      [[...TOKENIZER, '--decode'], '[[1, -1]]', /item 0/],
      [[...TOKENIZER, '--decode'], '[[99999999]]', /item 0/],
      [['--tokenizer', '/nonexistent.json'], '[]', /nonexistent\.json/],
    ]) {
      const { code, stdout, stderr } = await hearth(['tokenize', ...args], { input });
      assert.equal(code, 2, `${input}: ${stderr}`);
      assert.equal(stdout, '');
      assert.match(stderr, reason);
    }
  });
});

describe('hearth render', () => {
  const rows = readJson(`${GOLDEN}/text/chat_template_cases.json`);
  const templates = [...new Set(rows.map((row) => row.template))];

  test('there are 403 cases, 58 of them errors', () => {
    assert.equal(rows.length, 403);
    assert.equal(rows.filter((row) => 'error' in row).length, 58);
  });

  for (const template of templates) {
    test(`gives every golden result of ${template}`, async () => {
      const mine = rows.filter((row) => row.template === template);
      const items = mine.map(({ messages, tools, add_generation_prompt, kwargs }) => ({ messages, tools, add_generation_prompt, kwargs }));
      const answers = await convert(['render', '--template', `${GOLDEN}/chat-templates/${template}`], items);
      assertRows(answers, mine, (row) => ('error' in row ? { error: row.error } : row.expected), (row) => row.messages);
    });
  }

  test('refuses what it cannot read, with the reason', async () => {
    const known = `${GOLDEN}/chat-templates/${templates[0]}`;
    for (const [file, input, reason] of [
      [known, '5', /array/],
      [known, '["a"]', /item 0/],
      ['/nonexistent.jinja', '[]', /nonexistent\.jinja/],
      [`${GOLDEN}/tiny-a/model.safetensors`, '[]', /model\.safetensors/],
    ]) {
      const { code, stdout, stderr } = await hearth(['render', '--template', file], { input });
      assert.equal(code, 2, `${input}: ${stderr}`);
      assert.equal(stdout, '');
      assert.match(stderr, reason);
    }
  });
});

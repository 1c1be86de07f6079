// The official OpenAI client, and plain HTTP for what it has no method for.
let openai;
try {
  openai = await import('openai');
} catch (error) {
  throw new Error(`the openai client is missing, run: npm ci --prefix tests/e2e (${error.message})`);
}

export const {
  APIConnectionError, APIUserAbortError, AuthenticationError, BadRequestError, NotFoundError, RateLimitError,
} = openai;

// Tests see every answer: nothing is tried again unless they ask for it.
export function connect(cluster, options = {}) {
  return new openai.OpenAI({ baseURL: `${cluster.url}/v1`, apiKey: 'none', maxRetries: 0, ...options });
}

export const user = (content) => [{ role: 'user', content }];

// {status, body}: the body as JSON.
export async function post(cluster, route, body) {
  const answer = await fetch(cluster.url + route, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
  });
  return { status: answer.status, body: await answer.json() };
}

export async function get(cluster, route) {
  const answer = await fetch(cluster.url + route);
  const text = await answer.text();
  return { status: answer.status, text, headers: answer.headers };
}

// A whole stream of chat or completion chunks: {text, chunks, finishReason, usage}.
export async function collect(stream) {
  const whole = { text: '', chunks: [], finishReason: null, usage: null };
  for await (const chunk of stream) {
    whole.chunks.push(chunk);
    if (chunk.usage) whole.usage = chunk.usage;
    for (const choice of chunk.choices) {
      whole.text += choice.text ?? choice.delta?.content ?? '';
      whole.finishReason = choice.finish_reason ?? whole.finishReason;
    }
  }
  return whole;
}

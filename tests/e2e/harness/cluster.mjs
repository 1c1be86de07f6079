// A served model: `hearth serve` with its three services, for as long as a test needs it.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import readline from 'node:readline';

import { DEMO } from './paths.mjs';
import { start } from './processes.mjs';
import { waitUntil } from './wait.mjs';

const READY_MS = 120_000;
const STOP_MS = 30_000;
const KEPT_LINES = 200;

export class Cluster {
  // Ready when this returns. `flags` are of `hearth serve`.
  static async start(flags = [], { model = DEMO } = {}) {
    const runDir = mkdtempSync(path.join(os.tmpdir(), 'hearth-e2e-'));
    const args = ['serve', '--model', model, '--port', '0', '--run-dir', runDir, '--metrics', ...flags];
    const cluster = new Cluster(runDir, start('hearth', args));
    try {
      await cluster.#waitUntilReady();
    } catch (error) {
      await cluster.stop().catch(() => {});
      throw new Error(`${error.message}\n${cluster.log()}`);
    }
    return cluster;
  }

  constructor(runDir, child) {
    this.runDir = runDir;
    this.child = child;
    this.lines = [];
    this.ports = {};  // of the services' metrics, by service, and the gateway's own
    this.isOver = false;
    child.ended.then(() => (this.isOver = true));
    for (const stream of [child.stdout, child.stderr]) {
      readline.createInterface({ input: stream }).on('line', (line) => this.#onLine(line));
    }
  }

  get url() {
    return `http://127.0.0.1:${this.ports.gateway}`;
  }

  // The last lines that the services wrote.
  log() {
    return this.lines.join('\n');
  }

  // A sample's value, by its name with labels as Prometheus writes it. Throws where there is none, unless `absent` is
  // what that means.
  async metric(sample, service = 'gpu-worker', { absent } = {}) {
    const text = await (await fetch(`http://127.0.0.1:${this.ports[service]}/metrics`)).text();
    const line = text.split('\n').find((each) => each.startsWith(`${sample} `));
    if (line !== undefined) return Number(line.slice(sample.length + 1));
    if (absent === undefined) throw new Error(`${service} has no metric ${sample}`);
    return absent;
  }

  // Waits until the worker runs and keeps so many requests.
  async waitForLoad({ running, waiting = 0 }, { timeoutMs = 30_000 } = {}) {
    let seen = '';
    await waitUntil(
      () => `${running} running, ${waiting} waiting; last seen ${seen}`,
      async () => {
        const now = [await this.metric('hearth_num_requests_running'), await this.metric('hearth_num_requests_waiting')];
        seen = now.join(' and ');
        return now[0] === running && now[1] === waiting;
      },
      { timeoutMs },
    );
  }

  // Ends it as Ctrl-C does, and checks that it ends well. Leaves nothing behind in any case.
  async stop() {
    this.child.kill('SIGTERM');
    const timer = setTimeout(() => this.child.kill('SIGKILL'), STOP_MS);
    const end = await this.child.ended;
    clearTimeout(timer);
    rmSync(this.runDir, { recursive: true, force: true });
    assert.deepEqual(end, { code: 0, signal: null }, `hearth serve did not end well\n${this.log()}`);
  }

  #onLine(line) {
    this.lines.push(line);
    if (this.lines.length > KEPT_LINES) this.lines.shift();
    if (!line.startsWith('{')) return;
    const event = JSON.parse(line);
    if (event.message === 'metrics are served') this.ports[event.service] = event.port;
    if (event.message === 'serving' && event.service === 'gateway') this.ports.gateway = event.port;
  }

  async #waitUntilReady() {
    await waitUntil(
      'GET /ready answers 200',
      async () => {
        if (this.isOver) throw new Error('hearth serve ended before it was ready');
        if (!this.ports.gateway || !this.ports['gpu-worker']) return false;
        const answer = await fetch(`${this.url}/ready`);
        return answer.status === 200;
      },
      { timeoutMs: READY_MS },
    );
  }
}

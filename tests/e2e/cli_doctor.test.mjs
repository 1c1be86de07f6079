// `hearth doctor` on this machine, and a cluster that serves from where doctor says.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';

import { Cluster } from './harness/cluster.mjs';
import { DEMO } from './harness/paths.mjs';
import { hearth } from './harness/processes.mjs';
import { waitUntil } from './harness/wait.mjs';

describe('hearth doctor', () => {
  let folder;
  before(() => { folder = mkdtempSync(path.join(os.tmpdir(), 'hearth-e2e-doctor-')); });
  after(() => { rmSync(folder, { recursive: true }); });
  const doctor = (...flags) => hearth(['doctor', '--port', '0', '--out', path.join(folder, 'machine.json'), ...flags],
    { timeoutMs: 120_000 });

  test('measures, keeps what it found, and says the same in JSON', async () => {
    const { code, stdout, stderr } = await doctor('--json', '--model', DEMO);
    assert.equal(code, 0, stdout + stderr);
    const found = JSON.parse(stdout);
    assert.deepEqual(JSON.parse(readFileSync(path.join(folder, 'machine.json'), 'utf8')), found);
    assert.equal(found.can_serve, true);
    assert.equal(found.machine.cores, os.availableParallelism?.() ?? os.cpus().length);
    assert.ok(found.physical_cores >= 1 && found.memory_nodes >= 1);
    assert.ok(found.speed.read_bandwidth.every((reading) => reading.bytes_per_second.median > 1e8));
    assert.equal(found.model.layers, 8);
    assert.ok(found.model.needed_bytes > 10e6 && found.model.needed_bytes < found.memory.bytes);
    assert.ok(['always', 'madvise', 'never', 'unknown'].includes(found.huge_pages.anonymous));
    assert.equal(found.advice.some((advice) => advice.includes('huge=advise')), !found.huge_pages.segment);
  });

  test('reads like a page, quickly without measuring', async () => {
    const { code, stdout } = await doctor('--no-measure');
    assert.equal(code, 0);
    for (const line of [/^processor {2,}\S/m, /^ {2}kernels {2,}\S/m, /^memory {2,}[\d.]+ GiB, /m, /^huge pages /m, /^GPU /m,
      /^Hearth can serve here\.$/m]) {
      assert.match(stdout, line);
    }
    assert.doesNotMatch(stdout, /GB\/s/);
  });

  test('a taken port and a folder without a model are reasons, exit code 1', async () => {
    const server = net.createServer().listen(0, '127.0.0.1');
    await new Promise((resolve) => { server.once('listening', resolve); });
    const { port } = server.address();
    const { code, stdout } = await hearth(['doctor', '--no-measure', '--port', String(port), '--model', folder]);
    server.close();
    assert.equal(code, 1);
    assert.match(stdout, new RegExp(`Problem: .*${port}`));
    assert.match(stdout, /Problem: .*config\.json/);
    assert.match(stdout, /Hearth cannot serve here yet\./);
  });
});

describe('where doctor finds huge pages', () => {
  test('experts are served from them, and a killed store adopts them there', async (t) => {
    const found = JSON.parse((await hearth(['doctor', '--no-measure', '--json', '--port', '0'])).stdout);
    if (!found.huge_pages.segment) return t.skip('no huge pages here');
    // While other programs hold much memory, too few huge pages may be free at once: tried again then.
    let cluster;
    let bytes = 0;
    for (let i = 0; i < 5 && bytes <= 10e6; ++i) {
      await cluster?.stop();
      cluster = await Cluster.start();
      bytes = await cluster.metric('hearth_expert_store_huge_page_bytes', 'expert-store');
    }
    t.after(() => cluster.stop());
    assert.ok(bytes > 10e6, `${bytes} bytes in huge pages`);
    const store = cluster.log().match(/"child":"expert-store","pid":(\d+)/)[1];
    process.kill(Number(store), 'SIGKILL');
    await waitUntil('the segment is adopted', async () => cluster.log().includes('adopted the segment of an earlier process'));
    return undefined;
  });
});

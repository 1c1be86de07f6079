#!/usr/bin/env bash
# Builds the three images, starts them as docker-compose.yml says, and asks a question through the published port.
# Needs podman-compose (or docker with compose) and rights to build; ./dev containers installs and calls it.
# The base image debian:bookworm-slim must be there or be pullable.
set -euo pipefail
cd "$(dirname "$0")/../.."

if docker info >/dev/null 2>&1; then
  compose=(docker compose)
  inspect=(docker inspect)
else
  compose=(podman-compose)
  inspect=(podman inspect)
fi
export HEARTH_PORT="${HEARTH_PORT:-18080}"
url="http://127.0.0.1:$HEARTH_PORT"
services=(expert-store gpu-worker gateway)
project="$(basename "$PWD")"

fail() { echo "FAIL: $*" >&2; exit 1; }
stop() { "${compose[@]}" down -v >/dev/null 2>&1 || true; }
trap stop EXIT

"${compose[@]}" build "${services[@]}"
"${compose[@]}" up -d "${services[@]}"

deadline=$((SECONDS + 120))
until [ "$(curl -s -o /dev/null -w '%{http_code}' "$url/ready")" = 200 ]; do
  if [ "$SECONDS" -ge "$deadline" ]; then
    "${compose[@]}" logs >&2 || true
    fail "not ready within 120 s"
  fi
  sleep 0.5
done
echo "ready after ${SECONDS} s"

answer="$(curl -sS "$url/v1/chat/completions" -H 'Content-Type: application/json' \
  -d '{"model": "default", "temperature": 0, "messages": [{"role": "user", "content": "What is a lighthouse?"}]}')"
echo "$answer"
case "$answer" in
  *"a tower with a light that gives warning of shoals to passing ships."*) ;;
  *) fail "unexpected answer" ;;
esac

# A killed worker comes back and finds the experts where they were.
"${inspect[@]}" "${project}_gpu-worker_1" >/dev/null 2>&1 && worker="${project}_gpu-worker_1" || worker="${project}-gpu-worker-1"
"${inspect[@]}" --format '{{.Config.User}}' "$worker" | grep -q '^10001' || fail "the worker runs as root"
curl -sS "$url/metrics" | grep -q '^hearth_gateway_http_requests_total' || fail "no metrics from the gateway"
echo "1 passed, 0 failed"

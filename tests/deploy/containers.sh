#!/usr/bin/env bash
# Builds the three images, starts them as docker-compose.yml says, and checks what they promise: a chat through the
# published port, health, the experts on a tmpfs, no rights, and a killed worker that comes back to the same experts.
# Needs Docker with compose, or podman-compose; ./dev containers installs and calls it.
# The base image debian:bookworm-slim must be there or be pullable.
set -euo pipefail
cd "$(dirname "$0")/../.."

export COMPOSE_PROJECT_NAME=hearth-containers-test
export HEARTH_PORT="${HEARTH_PORT:-18080}"
url="http://127.0.0.1:$HEARTH_PORT"
services=(expert-store gpu-worker gateway)
expected="Lighthouse (noun): a tower with a light that gives warning of shoals to passing ships."

if docker compose version >/dev/null 2>&1; then
  engine=docker
  compose=(docker compose)
else
  engine=podman
  compose=(podman-compose -p "$COMPOSE_PROJECT_NAME")
fi

say() { printf '== %s\n' "$*"; }
fail() {
  echo "FAIL: $*" >&2
  "${compose[@]}" logs 2>&1 | tail -40 >&2 || true
  exit 1
}
stop() { "${compose[@]}" down -v >/dev/null 2>&1 || true; }

# container SERVICE: its name, in the style of this compose.
container() { "$engine" ps -a --format '{{.Names}}' | grep -x "${COMPOSE_PROJECT_NAME}[-_]$1[-_]1"; }
inside() { "$engine" exec "$(container "$1")" "${@:2}"; }

# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || fail "not in time: $what"
    sleep 0.2
  done
}

# podman-compose before 1.0.6 makes plain volumes of those that docker-compose.yml wants on a tmpfs. podman takes `size` for a
# disk quota, so the size is given in pages.
create_volumes() {
  local name size
  for name in run segment; do
    size=64m
    [[ $name == run ]] || size=${SEGMENT_SIZE:-1g}
    podman volume create --label "io.podman.compose.project=$COMPOSE_PROJECT_NAME" --opt type=tmpfs --opt device=tmpfs \
      --opt "o=uid=10001,gid=10001,mode=0700,nr_blocks=$(($(numfmt --from=iec "${size^^}") / $(getconf PAGESIZE)))" \
      "${COMPOSE_PROJECT_NAME}_$name" >/dev/null
  done
}

is_ready() { curl -sf --max-time 5 "$url/ready"; }
chat() {
  curl -sS --max-time 60 "$url/v1/chat/completions" -H 'Content-Type: application/json' -d '{"model": "demo",
    "temperature": 0, "max_tokens": 64, "messages": [{"role": "user", "content": "What is a lighthouse?"}]}'
}
answers() { chat | grep -F "$expected"; }

# Without systemd podman does not run health checks by itself.
is_healthy() {
  if [[ $engine == podman ]]; then podman healthcheck run "$(container "$1")"; fi
  [[ $("$engine" inspect --format '{{.State.Health.Status}}' "$(container "$1")") == healthy ]]
}

check_rights() {
  local status
  [[ $(inside "$1" id -u) == 10001 ]] || fail "$1 does not run as user 10001"
  inside "$1" grep -qE '^[^ ]+ / [^ ]+ ro[, ]' /proc/mounts || fail "$1 can write its root"
  status=$(inside "$1" cat /proc/1/status)
  grep -q '^CapBnd:[[:space:]]*0*$' <<<"$status" || fail "$1 has capabilities"
  grep -q '^NoNewPrivs:[[:space:]]*1$' <<<"$status" || fail "$1 may gain privileges"
}

segment_identity() { inside expert-store stat -c '%i %Y %s %a %u' /segment/experts; }
worker_pid() { "$engine" inspect --format '{{.State.Pid}}' "$(container gpu-worker)"; }

trap stop EXIT
stop
begin=$SECONDS
"${compose[@]}" build "${services[@]}"
say "built in $((SECONDS - begin)) s"
for service in "${services[@]}"; do
  say "hearth-$service: $("$engine" image inspect --format '{{.Size}}' "hearth-$service" |
    awk '{printf "%.0f MB", $1 / 1e6}')"
done

begin=$SECONDS
[[ $engine == docker ]] || create_volumes
"${compose[@]}" up -d "${services[@]}"
wait_for 120 "/ready" is_ready
say "ready $((SECONDS - begin)) s after up"
answers || fail "unexpected answer: $(chat)"

for service in "${services[@]}"; do
  wait_for 60 "$service is healthy" is_healthy "$service"
  check_rights "$service"
done
for port in gateway:8080 gpu-worker:9101 expert-store:9102; do
  inside gateway /usr/bin/hearth probe "http://$port/metrics" || fail "no metrics from $port"
done
for service in expert-store gpu-worker; do
  [[ $(inside "$service" stat -f -c %T /segment) == tmpfs ]] || fail "$service: the segment is not on a tmpfs"
done
segment=$(segment_identity)
[[ $segment == *" 600 10001" ]] || fail "the segment is not its user's alone: $segment"
say "healthy, without rights, the segment on a tmpfs"

begin=$SECONDS
old_pid=$(worker_pid)
kill -9 "$old_pid" 2>/dev/null || sudo -n kill -9 "$old_pid" || podman unshare kill -9 "$old_pid"
has_new_worker() { [[ $(worker_pid) != "$old_pid" && $(worker_pid) != 0 ]]; }
wait_for 60 "the killed worker is started again" has_new_worker
wait_for 60 "an answer after the worker's restart" answers
[[ $(segment_identity) == "$segment" ]] || fail "the segment is another one after the worker's restart"
say "the killed worker answered again after $((SECONDS - begin)) s, from the same experts"
echo "1 passed, 0 failed"

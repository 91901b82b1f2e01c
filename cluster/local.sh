#!/usr/bin/env bash
# Start a one-machine Ray cluster with token authentication in the foreground; Ctrl-C stops it.
#
#   bash cluster/local.sh [options of `ray start`]
#
# Run it from the repository root after `make setup`. The token is in ~/.ray/auth_token, made on the first run.
set -euo pipefail

cd "$(dirname "$0")/.."
# jobs run `python` from the PATH that the cluster was started with
export PATH="$PWD/.venv/bin:$PATH"
command -v ray >/dev/null || { echo "error: no ray command; run 'make setup' first" >&2; exit 1; }

export RAY_AUTH_MODE=token
# Ray Serve's proxy asks another replica when one dies
export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.edge:middlewares
ray get-auth-token --generate >/dev/null

cat <<TEXT
Submit a job from another terminal (give it a run directory outside the working directory, which is a copy):

  export PATH="$PWD/.venv/bin:\$PATH" RAY_AUTH_MODE=token
  ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\
      python -m jobs.pipeline --config configs/quickstart.toml run.dir=$PWD/runs/quickstart

TEXT
# each stage of a Ray Data pipeline holds a logical CPU, so a small machine declares more than it has
exec ray start --head --block --disable-usage-stats --num-cpus="${DIGR_NUM_CPUS:-8}" \
    --dashboard-host=127.0.0.1 --dashboard-port=8265 "$@"

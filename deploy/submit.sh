#!/usr/bin/env bash
# Run `ultraedit edit` as a job on a Ray cluster that is there already, and follow its log to the end.
#
#   export RAY_ADDRESS=http://127.0.0.1:8265      # the cluster's dashboard; a remote one through a tunnel
#   deploy/submit.sh --model /shared/models/llama --edits facts.jsonl --output /shared/runs/one --replicas 2 --tracking-uri none
#
# Give the same command with `--resume auto` to go on after a crash. Settings, all from the environment:
#   RAY_ADDRESS       where the job is sent
#   RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or the file ~/.ray/auth_token: the cluster's token
#   WORKING_DIR       what is uploaded and becomes the job's folder (.); relative paths such as `facts.jsonl` are looked up there
#   RUNTIME_ENV       Ray's runtime environment as JSON. The nodes need this project, from their image or from here:
#                     {"pip": ["/shared/ultraedit_orchestrator-0.1.0-py3-none-any.whl[distributed,tracking]"]}
set -euo pipefail

fail() {
    echo "submit.sh: $*" >&2
    exit 2
}

case "${RAY_ADDRESS:-}" in
    http://* | https://*) ;;
    "") fail "RAY_ADDRESS is not set; give the cluster's dashboard, as http://127.0.0.1:8265" ;;
    *) fail "RAY_ADDRESS is $RAY_ADDRESS; jobs are sent to the dashboard, as http://127.0.0.1:8265" ;;
esac

export RAY_AUTH_MODE=token # an open cluster takes jobs, which are programs, from everyone who reaches it
token_file=${RAY_AUTH_TOKEN_PATH:-${HOME:-}/.ray/auth_token}
[[ -n ${RAY_AUTH_TOKEN:-} || -s $token_file ]] || fail "no token: set RAY_AUTH_TOKEN, or put it in $token_file"

command -v ray >/dev/null || fail "ray is not installed; install this project with its extra [distributed]"

# The job's own folder is deleted with the job: what must stay goes to storage that all nodes share.
previous=
tracked=
for argument in "$@"; do
    case "$argument" in
        --output=* | --resume=*) option=${argument%%=*} value=${argument#*=} ;;
        *) option=$previous value=$argument ;;
    esac
    case "$option $value" in
        "--resume /"*) tracked=yes ;; # with the options of that run
        "--output /"* | "--resume auto") ;;
        "--output "* | "--resume "*) fail "$option $value: give an absolute path, on storage that all nodes share" ;;
    esac
    [[ $argument != --tracking-uri* && $argument != --config* ]] || tracked=yes
    previous=$argument
done
[[ -n $tracked ]] || fail "no --tracking-uri: the default, a file in the job's folder, would be lost; name a server, or none"

exclude='{"excludes": [".git", ".venv", ".cache", "runs", "mlruns", "mlartifacts", "mlflow.db"]}'
exec ray job submit --address "$RAY_ADDRESS" --working-dir "${WORKING_DIR:-.}" --runtime-env-json "${RUNTIME_ENV:-$exclude}" \
    -- ultraedit edit "$@"

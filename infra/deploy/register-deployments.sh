#!/bin/sh
# Bring Prefect to this release: the work pool, the automation that notices dead runs, the deployments.
# Safe to run again. Schedules become those of prefect.yaml; change them there.
set -eu
here=$(dirname "$0")
pool=nightschool

prefect --no-prompt work-pool inspect "$pool" >/dev/null 2>&1 ||
    prefect --no-prompt work-pool create "$pool" --type process
python -c "from flows.serve import watch_for_zombies; watch_for_zombies()"
prefect --no-prompt deploy --all --prefect-file "$here/prefect.yaml"

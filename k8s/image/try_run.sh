#!/usr/bin/env bash
# Use what `python -m k8s.image.try_build FOLDER` built as a pod would: try_run.sh FOLDER
# uid 1000, no capabilities, no new privileges, root read-only, volumes where the manifests have them, no network but
# loopback. Starts a head, submits a small pipeline to it as a job, and checks that nothing else could be written.
set -euo pipefail
root=$(realpath "$1")/root
[[ -d $root ]] || { echo "$root: build it first: python -m k8s.image.try_build $1" >&2; exit 2; }

if [[ -z ${PERPCS_INSIDE:-} ]]; then
  PERPCS_INSIDE=1 exec unshare --net --pid --mount --fork --mount-proc --kill-child "$0" "$1"
fi
ip link set lo up
mkdir -p "$root"/{proc,dev,dev/shm,tmp,home/perpcs,experiments,etc/perpcs/config}
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
for volume in tmp home/perpcs experiments etc/perpcs/config; do
  mount -t tmpfs -o uid=1000,gid=1000 tmpfs "$root/$volume"
done
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
cat > "$root/etc/perpcs/config/experiment.yaml" <<'YAML'
experiment: /experiments/mini
population:
  synthetic: {archetypes: 2, base_users: 12, candidates: 6, targets: 3, history: 12, queries: 4}
prompt: {max_length: 48}
base:
  tiny: {hidden: 32, layers: 2, vocab: 400, steps: 60, batch: 16, lr: 1e-2}
  adapt: {steps: 4, batch: 8, rank: 4}
lora: {rank: 4}
select: {count: 4}
pool:
  train: {steps: 30, batch: 4, pack: 2, lr: 1e-2}
  gate: {steps: 6, batch: 4}
  sketch: 8
own: {steps: 30, batch: 4, pack: 2, lr: 1e-2}
evaluate: {resamples: 100}
YAML
mount -o remount,ro,bind "$root"

as_pod() {
  env -i HOME=/home/perpcs RAY_AUTH_MODE=token RAY_AUTH_TOKEN=rehearsed HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0 \
    PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 \
    PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" setpriv --reuid 1000 --regid 1000 --clear-groups --no-new-privs --bounding-set=-all \
    /bin/bash -lc "cd /home/perpcs && $1"
}
as_pod 'id -u; cat /opt/perpcs/COMMIT; ray --version; wget --version | head -1'
as_pod 'python -c "import perpcs, storage, jobs, torch; print(torch.__version__)"; python -m jobs.pipeline --help | head -3'
as_pod 'touch /opt/perpcs/x 2>&1 || true'
as_pod 'ray start --head --node-ip-address 127.0.0.1 --num-cpus 2 --object-store-memory 150000000 >/tmp/start.log 2>&1 || { cat /tmp/start.log; exit 1; }'
as_pod 'until wget -q -O- --header="Authorization: Bearer rehearsed" http://127.0.0.1:8265/api/gcs_healthz; do sleep 1; done; echo'
as_pod 'ray job submit --address http://127.0.0.1:8265 -- python -m jobs.pipeline /etc/perpcs/config/experiment.yaml 2>&1 | tail -40'
as_pod 'wget -q -O- http://127.0.0.1:52365/api/local_raylet_healthz; echo; ls /experiments/mini'

#!/usr/bin/env bash
# Builds the TensorRT engines of this model repository for this machine's GPU: the only step that export left to do.
# Run it inside the NVIDIA Triton container that will serve the repository, since engines load in one TensorRT version
# only; that container's Python needs resrank[triton], as serving does.
#
#   ./build-engines.sh [--force] [--device N]
#
#   --force     build again what is built already
#   --device N  the CUDA device to build on and for (default 0)
#
# TRTEXEC names the builder where it is neither on PATH nor where the container has it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
  echo "build-engines.sh: $*" >&2
  exit 1
}

force=false
device=0
while (($#)); do
  case "$1" in
    --force) force=true ;;
    --device)
      [[ "${2:-}" =~ ^[0-9]+$ ]] || fail "--device needs the number of a CUDA device"
      device="$2"
      shift
      ;;
    *) fail "$1 is no option of this command: ./build-engines.sh [--force] [--device N]" ;;
  esac
  shift
done

trtexec="${TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}"
[[ -x "$trtexec" ]] || fail "no trtexec found: run this inside NVIDIA's Triton container, or name the builder in TRTEXEC"
command -v nvidia-smi >/dev/null || fail "no nvidia-smi found: engines are built on the GPU that they are for"
command -v python3 >/dev/null || fail "no python3 found: it checks the graphs and writes the manifest"
python3 -c "import resrank.export.plan_record" 2>/dev/null ||
  fail "$(command -v python3) has no resrank[triton], which serving needs too: in a clone pip install '.[triton]'"

capability="$(nvidia-smi --id="$device" --query-gpu=compute_cap --format=csv,noheader)" ||
  fail "nvidia-smi knows no device $device"
plan="$(python3 -m resrank.export.plan_record check . "$capability")"
for model in encoder reranker; do
  [[ ! -e "$model/1/$plan" ]] || $force || fail "$model/1/$plan is built already: build it again with --force"
done

# In a model's folder, where Triton does not look, and on the file system that the plans are renamed on.
scratch="$(mktemp -d encoder/.build.XXXXXX)"
trap 'rm -rf "$scratch"' EXIT
cache="timing.sm${capability/./}.cache" # kernel timings, which make a second build quick
place=(python3 -m resrank.export.plan_record place . "$capability" "$scratch") # both at once, when both are built

# compile MODEL ARGUMENTS...: runs the builder; networks are strongly typed, as all are since TensorRT 11.
compile() {
  local model="$1"
  shift
  "$trtexec" --device="$device" --onnx="$model/1/model.onnx" --saveEngine="$scratch/$model.plan" --skipInference \
    --timingCacheFile="$cache" "$@" >"$scratch/$model.log" 2>&1
}

# build MODEL ARGUMENTS...: one engine.
build() {
  local model="$1" start="$SECONDS"
  [[ ! -s "$cache" ]] || place+=("--$model-timing-cache")
  echo "Building the $model for compute capability $capability (minutes)"
  # Attention is one fused kernel unless the builder has none for this GPU and these heads, and says so.
  compile "$@" || {
    grep -q "dedicated kernel" "$scratch/$model.log" &&
      echo "This GPU has no fused attention kernel for the $model: building it from several, which are slower" &&
      compile "$@" '--decomposableAttentions=*'
  } || {
    tail -n 25 "$scratch/$model.log" >&2
    fail "trtexec could not build the $model; its last words are above"
  }
  [[ -s "$scratch/$model.plan" ]] || fail "trtexec wrote no plan of the $model"
  place+=("--$model-seconds" "$((SECONDS - start))")
}

@@builds
"${place[@]}"
echo "Built encoder/1/$plan and reranker/1/$plan"

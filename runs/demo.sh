#!/usr/bin/env bash
# The main job on a real model, from a checkpoint to a report. It prints each command and runs just that.
set -euo pipefail

# check, score and bench take this model, whatever else lies under graphs/.
export PIPELINE_MODEL=SmolLM2-135M-Instruct
printf '$ export PIPELINE_MODEL=%s\n' "$PIPELINE_MODEL"

run() {
    printf '\n$ pipeline'
    printf ' %q' "$@"
    printf '\n'
    pipeline "$@"
}

run export demo
run calibrate demo --samples 32 --length 128
for kind in attn mlp block; do
    for rule in last cosine; do # the papers' first rule, and the one that suits this model (docs/notes.md)
        run export demo --skip "$kind" --frac 0.25 --select "$rule"
    done
done
# A map, fitted in closed form, in the place of each MLP that goes.
run compensate graphs/SmolLM2-135M-Instruct/mlp12-17_25-26.fp32.onnx --with linear --samples 24 --no-time
run check
if python -c 'import tensorrt_rtx_bindings' 2>/dev/null; then
    run build-engine graphs/SmolLM2-135M-Instruct/attn22-29.fp32.onnx --target sm80
else
    printf "\nno engine: TensorRT-RTX is not installed (pip install 'skip-pipeline[rtx]')\n"
fi
for graph in base attn22-29 attn5-7_9_25-26_28-29; do
    run generate "graphs/SmolLM2-135M-Instruct/$graph.fp32.onnx" "The capital of France is" --max-tokens 16
done
run score --tasks smoke,smoke-loss --together
run bench --sequences 20 # its second table has a row a variant: scores, and what it saves of what it could
run report

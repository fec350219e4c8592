# Sourced by the scripts beside it: `source common.sh RECIPE [options of train.py]`. Trains in this job, on one node.
#
#   DATA      data set, a zip or folder in EG3D's layout (needed)
#   OUTDIR    where the run folders go (training-runs)
#   GPUS      number of GPUs (those that Slurm gave this node; outside Slurm as many as the recipe's authors had, as far as there are)
#   PYTHON    interpreter (.venv/bin/python if there is one, else python)
#
# What a recipe is made of stands in training/presets.py. Partition, time, number of GPUs and the like are sbatch's: options on its command
# line, or its own variables SBATCH_PARTITION, SBATCH_TIMELIMIT, SBATCH_GPUS.
set -euo pipefail

recipe=$1
shift
fail() {
    echo "$recipe: $*" >&2
    exit 1
}

for name in DATA OUTDIR GPUS; do         # as train.py takes its options: no carriage return at the end, ~ expanded
    value=${!name:-}
    value=${value%$'\r'}
    [[ $value != "~" && $value != "~/"* ]] || value=$HOME${value:1}
    [[ -z $value ]] || printf -v "$name" %s "$value"
done
[[ -n ${DATA:-} ]] || fail "DATA is not set; give the data set: DATA=/path/to/data.zip sbatch slurm_scripts/$recipe.sh"
[[ -e $DATA ]] || fail "DATA=$DATA: there is no such file or folder on $(hostname); check the path"
DATA=$(realpath "$DATA")
OUTDIR=$(realpath -m "${OUTDIR:-training-runs}")
GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-}}
[[ -z $GPUS || $GPUS =~ ^[1-9][0-9]*$ ]] || fail "GPUS=$GPUS: expected a number from 1 on"

# Recipes name the networks they start from relative to the project.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python
    [[ ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
fi
exec "$PYTHON" train.py --recipe="$recipe" --data="$DATA" --outdir="$OUTDIR" ${GPUS:+--gpus="$GPUS"} "$@"

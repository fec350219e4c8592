#!/usr/bin/env bash
#SBATCH --job-name=raycond3-t-ffhq
#SBATCH --output=%x-%j.out
#SBATCH --nodes=1
#SBATCH --gpus=2
#SBATCH --cpus-per-gpu=4
# FFHQ with an alias-free generator, from checkpoints/stylegan3-t-ffhq-1024x1024.pkl, whose images only data of 1024 px keep.
# From the project's folder: DATA=/path/to/ffhq-1024.zip sbatch [--partition=NAME --gpus=N ...] slurm_scripts/raycond3-t-ffhq.sh [options of train.py]
common=${RAYCOND_DIR:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm_scripts/common.sh
[[ -f $common ]] || { echo "raycond3-t-ffhq: there is no $common; submit from the project's folder, or set RAYCOND_DIR to it" >&2; exit 1; }
# shellcheck source=slurm_scripts/common.sh
source "$common" raycond3-t-ffhq "$@"

#!/usr/bin/env bash
#SBATCH --job-name=raycond3-t-afhq
#SBATCH --output=%x-%j.out
#SBATCH --nodes=1
#SBATCH --gpus=2
#SBATCH --cpus-per-gpu=4
# AFHQ cats at 512 px with an alias-free generator, from checkpoints/stylegan3-t-afhqv2-512x512.pkl.
# From the project's folder: DATA=/path/to/afhq-cats.zip sbatch [--partition=NAME --gpus=N ...] slurm_scripts/raycond3-t-afhq.sh [options of train.py]
common=${RAYCOND_DIR:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm_scripts/common.sh
[[ -f $common ]] || { echo "raycond3-t-afhq: there is no $common; submit from the project's folder, or set RAYCOND_DIR to it" >&2; exit 1; }
# shellcheck source=slurm_scripts/common.sh
source "$common" raycond3-t-afhq "$@"

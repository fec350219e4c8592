#!/usr/bin/env bash
#SBATCH --job-name=raycond2-ffhq-1024
#SBATCH --output=%x-%j.out
#SBATCH --nodes=1
#SBATCH --gpus=2
#SBATCH --cpus-per-gpu=4
# FFHQ at 1024 px, from checkpoints/stylegan2-ffhq-1024x1024.pkl.
# From the project's folder: DATA=/path/to/ffhq-1024.zip sbatch [--partition=NAME --gpus=N ...] slurm_scripts/raycond2-ffhq-1024.sh [options of train.py]
common=${RAYCOND_DIR:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm_scripts/common.sh
[[ -f $common ]] || { echo "raycond2-ffhq-1024: there is no $common; submit from the project's folder, or set RAYCOND_DIR to it" >&2; exit 1; }
# shellcheck source=slurm_scripts/common.sh
source "$common" raycond2-ffhq-1024 "$@"

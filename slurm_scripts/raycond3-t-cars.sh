#!/usr/bin/env bash
#SBATCH --job-name=raycond3-t-cars
#SBATCH --output=%x-%j.out
#SBATCH --nodes=1
#SBATCH --gpus=8
#SBATCH --cpus-per-gpu=4
# ShapeNet cars at 128 px with an alias-free generator, from scratch.
# From the project's folder: DATA=/path/to/cars.zip sbatch [--partition=NAME --gpus=N ...] slurm_scripts/raycond3-t-cars.sh [options of train.py]
common=${RAYCOND_DIR:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}/slurm_scripts/common.sh
[[ -f $common ]] || { echo "raycond3-t-cars: there is no $common; submit from the project's folder, or set RAYCOND_DIR to it" >&2; exit 1; }
# shellcheck source=slurm_scripts/common.sh
source "$common" raycond3-t-cars "$@"

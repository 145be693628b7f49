#!/usr/bin/env bash
# Every number in docs/evidence.md: run this, then `python -m benchmarks.paired runs/evidence/NAME-*`.
# Runs that are done are not trained again; a run that was cut goes on. Give names to run only some of them.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
run() { name=$1 seed=$2; shift 2; .venv/bin/selfdistill run "$@" --seed "$seed" --out "runs/evidence/$name-$seed"; }
small='cnn(width=16)'

noise()      { for s in 0 1 2 3 4 5; do run noise "$s" digits --label-noise 0.4 --method 'elr()'; done; }
adaptive()   { for s in 0 1 2 3 4 5; do run adaptive "$s" digits --label-noise 0.4 --method 'self_adaptive()'; done; }
unlabelled() { for s in 0 1 2 3 4 5; do run unlabelled "$s" digits --labels 100 --method 'curriculum()'; done; }
again()      { for s in 0 1 2; do run again "$s" digits --method 'born_again(generations=2)'; done; }
past()       { for s in 0 1 2; do run past "$s" fashion-mnist --label-noise 0.4 --labels 10000 --method 'ps_kd()' --model "$small" --steps 2000; done; }
match()      { for s in 0 1 2; do run match "$s" fashion-mnist --labels 250 --method 'fixmatch()' --model "$small" --steps 500; done; }

harmful()    { for s in 0 1 2 3 4 5 6 7 8 9; do run harmful "$s" digits --method 'born_again(generations=3, xi=0.9, temperature=4)' --model 'mlp(dropout=0.5)' --weight-decay 0.01; done; }
helpful()    { for s in 0 1 2 3 4 5; do for a in ungated:off helpful:safe; do run "${a%:*}" "$s" digits --label-noise 0.4 --method 'born_again(generations=3)' --model 'mlp(dropout=0)' --weight-decay 0 --audit "${a#*:}"; done; done; }
repeated()   { .venv/bin/python -m benchmarks.repeated --seeds 8 --out runs/evidence/repeated.jsonl; }
verdicts()   { .venv/bin/selfdistill compare digits --labels 300 --label-noise 0.4 --methods 'born_again()' 'ps_kd()' --seeds 10 --out runs/evidence/verdicts; }

for what in "${@:-noise adaptive unlabelled again past match harmful helpful verdicts repeated}"; do for one in $what; do "$one"; done; done

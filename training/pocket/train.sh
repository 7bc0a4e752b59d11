#!/usr/bin/env bash
# Continue the training of pocket from the weights that fluxnb ships: T5, teacher, judge, student, evaluation.
#
#   bash training/pocket/train.sh RUN [GPUS]
#
# RUN is the folder of the run. A stage writes RUN/STAGE.log, and RUN/STAGE.done once it is complete; a stage that has
# this file is not repeated. Variables: the seconds of the trainings (TEXT, TEACHER, JUDGE, REFLOW, LADD); with TEXT=0,
# TEACHER=0 or JUDGE=0, T5, the teacher or the judge stays as it is; SEED of the teacher's scenes, which must be another
# one in each continuation; EVALUATE, the options of the evaluation; PRESET, PAIR and LOGS for a trial with other
# networks; PYTHON.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
run=$(mkdir -p "$1" && cd "$1" && pwd) gpus=${2:-1}
logs=${LOGS:-$here}
cd "$here/../.."
pair=${PAIR:-fluxnb/pocket}

program=("${PYTHON:-python3}" -m torch.distributed.run --standalone)

# stage NAME [options]: run a stage that has not run yet, on all GPUs.
stage() {
  local name=$1
  shift
  [ ! -e "$run/$name.done" ] || return 0
  "${program[@]}" --nproc-per-node "$gpus" -m fluxnb.train "${name%%-*}" \
    --preset "${PRESET:-pocket}" --out "$run" "$@" >>"$run/$name.log" 2>&1
  touch "$run/$name.done"
}

if [ ! -e "$run/before.safetensors" ]; then
  # The training adds to these logs; text.jsonl and notes.json are for the card.
  for name in autoencoder.jsonl text.jsonl teacher.jsonl judge.jsonl notes.json; do
    [ ! -e "$logs/$name" ] || cp "$logs/$name" "$run/"
  done
  "${PYTHON:-python3}" -m fluxnb.train resume --out "$run" --pretrained "$pair" >>"$run/resume.log" 2>&1
fi

# leave NAME FROM TO: the stage NAME is complete with the weights FROM as they are.
leave() {
  [ -e "$run/$1.done" ] || { cp "$run/$2.safetensors" "$run/$3.safetensors" && touch "$run/$1.done"; }
}

[ "${TEXT:-}" != 0 ] || leave text before start
[ "${TEACHER:-}" != 0 ] || leave teacher start teacher
[ "${JUDGE:-}" != 0 ] || leave judge judge-before judge
stage text --pretrained "$run/before.safetensors" --seconds "${TEXT:-60}"
stage teacher --pretrained "$run/start.safetensors" --seconds "${TEACHER:-740}" --seed "${SEED:-10000}" \
  --tokens "${TOKENS:-131072}" --scenes "${SCENES:-120000}" --rate 1e-3 --warmup 200
stage judge --pretrained "$run/judge-before.safetensors" --seconds "${JUDGE:-120}" --scenes "${JUDGE_SCENES:-80000}"
stage student --pairs "${PAIRS:-131072}" --tokens "${STUDENT_TOKENS:-65536}" \
  --warm-seconds "${REFLOW:-600}" --seconds "${LADD:-350}"
# shellcheck disable=SC2086  # several options in one variable
stage evaluate ${EVALUATE:-}
gpus=1
stage samples
stage samples-student --transformer student --steps 4 --guidance 1

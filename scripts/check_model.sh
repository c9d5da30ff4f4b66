#!/usr/bin/env bash
# Check the model of the protocol, docs/protocol/ordergate.pml, with Spin: what `make model` runs.
#
# The protocol must hold in every state that can be reached. Each wrong protocol must break the promise that
# its line names, or the model would prove nothing; so must what the protocol does not cover, or the pages say
# less of it than is true. One line each; exits 1 where one is not as expected.
# Needs gcc. Spin is taken from PATH, else from Debian's and Ubuntu's package, unpacked in .services/ and not
# installed. About five minutes of one core, and 1.1 GiB.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
model=$PWD/docs/protocol/ordergate.pml
seconds_max=900 # for one check: a busy machine is slow, a hung one must not wait for ever
failed=0

fail() {
    echo "check_model: $*" >&2
    exit 1
}

# Print a Spin that runs; fetch the package where there is none.
find_spin() (
    if command -v spin >/dev/null && [[ $(spin -V 2>/dev/null) == "Spin Version"* ]]; then
        command -v spin
        return
    fi
    mkdir -p .services
    exec 9<.services
    flock 9 # a second run waits for the first, then finds the package there
    [ -x .services/spin/usr/bin/spin ] || fetch_spin
    .services/spin/usr/bin/spin -V >/dev/null || fail "the packaged spin does not run here; put a spin on PATH"
    echo "$PWD/.services/spin/usr/bin/spin"
)

fetch_spin() {
    command -v apt-get >/dev/null || fail "Spin is needed; without Debian's or Ubuntu's packages, put it on PATH"
    (
        cd "$scratch"
        if ! timeout 300 apt-get -q download spin >apt.log 2>&1; then
            # No package lists, or old ones. Lists of our own need no root and leave the system's alone.
            mkdir -p lists/partial archives/partial
            own=(-o "Dir::State::Lists=$PWD/lists" -o "Dir::Cache=$PWD" -o Acquire::http::Timeout=30)
            timeout 300 apt-get -q "${own[@]}" update >>apt.log 2>&1 || true # one source may be unreachable
            timeout 300 apt-get -q "${own[@]}" download spin >>apt.log 2>&1 ||
                { cat apt.log >&2; fail "no package spin to be had; as root: apt-get install spin"; }
        fi
        dpkg -x spin_*.deb spin
    )
    rm -rf .services/spin.new
    mv "$scratch/spin" .services/spin.new # may be copied; the next one is whole or not at all
    mv .services/spin.new .services/spin
}

# Run one check to its end. Its output is in $scratch/run/output.
# $@ the model's switches
run() {
    rm -rf "$scratch/run"
    mkdir "$scratch/run"
    (
        cd "$scratch/run"
        "$spin" "$@" -a "$model" >spin.log 2>&1 || { cat spin.log >&2; fail "spin does not take the model"; }
        # Exhaustive: no bit-state hashing, no partial-order reduction; MEMLIM in MiB.
        gcc -w -O2 -DNOREDUCE -DMEMLIM=3072 -o pan pan.c || fail "the checker made by spin does not compile"
        timeout "$seconds_max" ./pan -a -n -m400000 -w25 >output 2>&1 || echo "pan ended with $?" >>output
    )
}

# Whether the search went through all states. It says so where memory or its stack did not suffice.
complete() {
    grep -q "^Full statespace search for:" "$scratch/run/output" &&
        ! grep -qE "not completed|max search depth too small|out of memory|pan ended" "$scratch/run/output"
}

# Print one line of verdict.
# $1 as expected or not, $2 what it is about, $3 what was found
verdict() {
    [ "$1" = ok ] || failed=1
    printf '%-6s  %-54s  %s\n' "$1" "$2" "$3"
    [ "$1" = ok ] || cat "$scratch/run/output" >&2
}

# $1 what it is about, $2.. switches
holds() {
    local about=$1 found
    shift
    run "$@"
    found=$(sed -nE 's/^ *([0-9]+) states, stored.*/\1 states/p; s/^pan: elapsed time (.*) seconds/\1 s/p
        s/^ *([0-9.]+).total actual memory usage/\1 MiB/p' "$scratch/run/output" | paste -sd, | sed 's/,/, /g')
    if complete && grep -q "errors: 0$" "$scratch/run/output"; then
        verdict ok "$about" "holds: $found"
    else
        verdict FAILED "$about" "expected to hold"
    fi
}

# A protocol that must not hold. Three entries suffice for each, and two faults for most.
# $1 what it is about, $2 what the checker must say is broken, $3.. switches
breaks() {
    local about=$1 broken=$2
    shift 2
    run -DENTRIES=3 "-DFAULTS=$faults" "$@"
    if grep -qE "^pan:1: .*$broken" "$scratch/run/output"; then
        verdict ok "$about" "breaks: $broken"
    else
        verdict FAILED "$about" "expected to break: $broken"
    fi
}

command -v gcc >/dev/null || fail "a C compiler is needed, for Spin makes a C program of the model: install gcc"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
spin=$(find_spin)

holds "any number of faults, 3 entries, one at a time" -DENTRIES=3
holds "2 faults, 4 entries, batches" -DENTRIES=4 -DFAULTS=2 -DBATCHES
holds "3 faults, 4 entries, one at a time" -DENTRIES=4 -DFAULTS=3

holds "2 faults, 3 entries, batches, trimmed in hand" -DENTRIES=3 -DFAULTS=2 -DBATCHES -DTRIMMING
holds "3 faults, 3 entries, one at a time, trimmed in hand" -DENTRIES=3 -DFAULTS=3 -DTRIMMING
holds "2 faults, 3 entries, batches, entries given up" -DENTRIES=3 -DFAULTS=2 -DBATCHES -DGIVING_UP
holds "3 faults, 3 entries, one at a time, entries given up" -DENTRIES=3 -DFAULTS=3 -DGIVING_UP
holds "2 faults, 3 entries, batches, ids given again" -DENTRIES=3 -DFAULTS=2 -DBATCHES -DGIVEN_AGAIN
holds "2 faults, 3 entries, one at a time, the stream lost" -DENTRIES=3 -DFAULTS=2 -DSTREAM_LOST

at_the_end=-DJUDGE_AT_THE_END
faults=2
breaks "wrong: acknowledge before commit" I4_acknowledged_only_after_commit -DACKNOWLEDGE_BEFORE_COMMIT
breaks "wrong: acknowledge before commit, judged at the end" I1_no_order_is_missing \
    -DACKNOWLEDGE_BEFORE_COMMIT -DORDERS_ALONE $at_the_end
breaks "wrong: a held claim taken for a duplicate" I1_no_order_is_missing -DHELD_IS_DUPLICATE $at_the_end
breaks "wrong: insert what won SET NX, without the constraint" I2_no_content_is_accepted_twice -DNO_CONSTRAINT
breaks "wrong: drop a repeat whose original Postgres lacks" I1_no_order_is_missing \
    -DDROP_UNPROVEN_DUPLICATE $at_the_end
breaks "wrong: no point for a redelivered entry" I5_point_written_or_owed_before_acknowledgement \
    -DSKIP_POINT_OF_REDELIVERY
breaks "wrong: a lost group made again at its end" I1_no_order_is_missing -DRECREATE_AT_END
breaks "wrong: what dead workers left is never taken over" "acceptance cycle" -DNO_TAKEOVER
breaks "wrong: acknowledge before points are written or owed" I5_point_written_or_owed_before_acknowledgement \
    -DSETTLE_BEFORE_POINTS
breaks "wrong: the same, judged at the end" I5_each_outcome_has_its_point -DSETTLE_BEFORE_POINTS $at_the_end
breaks "wrong: no note that points are in hand" I5_each_outcome_has_its_point -DSTREAM_LOST -DNO_NOTE_IN_HAND
breaks "wrong: points left in hand are nobody's" "acceptance cycle" -DSTREAM_LOST -DLEAVE_IN_HAND
breaks "wrong: a consumer is deleted with what it has pending" I1_no_order_is_missing \
    -DDELETE_CONSUMER -DORDERS_ALONE
breaks "wrong: record what is on record as trimmed" I3_every_entry_has_one_outcome \
    -DTRIMMING -DRECORD_TRIMMED_AGAIN
breaks "wrong: accept what another worker gave up" I3_every_entry_has_one_outcome \
    -DGIVING_UP -DACCEPT_WHAT_WAS_GIVEN_UP
breaks "wrong: what was trimmed once stays so, its id given again" "acceptance cycle" \
    -DGIVEN_AGAIN -DFIRST_STANDS_ALWAYS
faults=3 breaks "wrong: acknowledge what may be another entry" I1_no_order_is_missing \
    -DGIVEN_AGAIN -DLEFT_IS_ACKNOWLEDGED $at_the_end
breaks "not covered: Postgres forgets a commit" I1_no_order_is_missing -DPOSTGRES_FORGETS $at_the_end
breaks "not covered: Redis drops a trimmed entry as it is taken over" I5_each_outcome_has_its_point \
    -DTRIMMING -DCLAIM_DROPS_TRIMMED $at_the_end
faults=3 breaks "not covered: a late acknowledgement, its id given again" I1_no_order_is_missing -DGIVEN_AGAIN
exit "$failed"

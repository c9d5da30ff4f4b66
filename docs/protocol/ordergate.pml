/* The protocol of Ordergate as a model for the checker Spin. README.md beside this file says which function
 * each step stands for, what is left out, and how to run it.
 *
 * Two workers take the entries of one stream through the steps claim, record, emit and settle. Between and
 * within the steps anything may go wrong (FAULT), until it is calm: from then on nothing does. Checked are
 * the assertions, each named after a promise, and, by the claim at the end, that calm always ends in an audit
 * which finds everything recorded and acknowledged and nothing owed.
 *
 * Sizes, set with -D: ENTRIES, 3 or 4; FAULTS, how many at most, or not set for any number; BATCHES, where a
 * worker may take all there is at once and not only one entry; TRIMMING, where pending entries may be trimmed;
 * GIVING_UP, where a worker may reject an entry unseen that others hold, too; GIVEN_AGAIN, where the stream may be deleted too, and replayed with the ids it had; STREAM_LOST, where it may
 * go for good, and what is on record must still come to its points. Names of wrong protocols are set with -D
 * too; JUDGE_AT_THE_END leaves them all but the audit, to see what a wrong step leads to, and ORDERS_ALONE
 * leaves out what the audit says of points.
 */
#ifndef ENTRIES
#define ENTRIES 4
#endif

/* Entries by their place in the stream; sets of entries are bit masks. */
#define ORIGINAL  1                             /* these two are one content, within one window */
#define BAD       2                             /* no order */
#define TWIN      4
#define GOOD      8                             /* an order of its own */
#define TWINS     (ORIGINAL | TWIN)
#define ORDERS    (ALL & ~BAD)
#define ALL       ((1 << ENTRIES) - 1)
#define behind(n) (ALL & ~((1 << (n)) - 1))     /* the entries behind the first n */

/* Postgres. It forgets nothing. */
byte accepted, duplicates, rejections;          /* the entries on record */
byte owed;                                      /* the entries in point_backlog */
#define on_record          (accepted | duplicates | rejections)
#define original_of(entry) (accepted & ((entry & TWINS) -> TWINS : entry))

/* InfluxDB. A point written again is the same point, so the model does not write again what is owed. */
byte points;

/* Redis. It may forget anything, or go back, at any moment. */
byte delivered;                                 /* the group's position: the first so many entries */
byte pending;                                   /* delivered and not acknowledged */
byte claim;                                     /* of the twins' content: */
#define NONE      0
#define LONG_AGO  16                            /* by an entry that Postgres has never heard of */
                                                /* else by one of the twins */
#define is_stored ((pending & claim) == 0)     /* so it seems: its entry is not in anybody's hand */

#define alone(set) (((set) & ((set) - 1)) == 0)

/* The workers: the entries in hand, and those of them that Redis said are repeats. */
byte hand[2], known[2];

/* A request whose sender gave up waiting. It may still take effect, or be lost. One at a time. */
byte late_record, late_settle;

#ifdef GIVEN_AGAIN
#define TRIMMING
#endif
#if defined(TRIMMING) || defined(GIVING_UP)
#define UNSEEN
byte blank[2], late_blank;                      /* in hand, or on its way, to be rejected whatever they hold */
#define unseen(w) blank[w]
#else
#define late_blank 0
#define unseen(w) 0
#endif
#ifdef TRIMMING
byte trimmed;                                   /* gone from the stream */
#else
#define trimmed 0
#endif
#ifdef GIVING_UP
byte given_up;
#else
#define given_up 0
#endif
#if defined(GIVING_UP) && !defined(ACCEPT_WHAT_WAS_GIVEN_UP)
#define stays rejections                        /* what is on record as rejected is rejected again */
#else
#define stays 0
#endif
#ifdef GIVEN_AGAIN
byte again;                                     /* entries whose id was given again */
byte noted[2];                                  /* rejected as trimmed since the worker last heard Postgres' time, */
byte since[2], late_since;                      /* and since the time that its batch, or the late request, carries */
#define since_read(w) since[w]
#else
#define again 0
#define late_since ALL
#define since_read(w) ALL
#endif

#ifdef STREAM_LOST
bool lost;                                      /* the stream is gone, and no entry comes again */
byte in_hand[2], left_in_hand;                  /* in points_in_hand: by their worker, and of no worker */
#else
#define lost 0
#define left_in_hand 0
#endif

bool calm, audited;
#define done (delivered == ENTRIES && !pending && !hand[0] && !hand[1] && !owed && !left_in_hand)

#ifdef FAULTS
byte faults;
#define FAULT(possible) (!calm && faults < FAULTS && (possible)) -> faults++
#else
#define FAULT(possible) (!calm && (possible))
#endif

#ifdef SKIP_POINT_OF_REDELIVERY
byte fresh[2];                                  /* in hand, and recorded by this very worker */
#endif

/* Never set: they give a broken promise its name in what the checker prints. */
hidden byte I1_no_order_is_missing, I2_no_content_is_accepted_twice, I3_every_entry_has_one_outcome;
hidden byte I4_acknowledged_only_after_commit, I5_point_written_or_owed_before_acknowledgement;
hidden byte I5_each_outcome_has_its_point;
hidden byte a_duplicate_stands_beside_its_original;

/* Some of a set: any one, or all. */
inline pick(some, set)
{
    if
    :: set & 1 -> some = 1
    :: set & 2 -> some = 2
    :: set & 4 -> some = 4
    :: set & 8 -> some = 8
#ifdef BATCHES
    :: set & (set - 1) -> some = set
#endif
    fi
}

/* SET NX for the twins' content, and the decision. Won and held both end in an insert; so does stored where
 * an entry of before is pending, or claims are on a Redis of their own. */
inline claim_and_decide(w)
{
    if
    :: !(hand[w] & TWINS)
    :: (hand[w] & TWINS) && claim == NONE ->
        claim = ((hand[w] & ORIGINAL) -> ORIGINAL : TWIN)
#if defined(HELD_IS_DUPLICATE) || defined(NO_CONSTRAINT)
        ; known[w] = hand[w] & TWINS & ~claim
    :: (hand[w] & TWINS) && claim != NONE && !is_stored -> known[w] = hand[w] & TWINS & ~claim
#else
    :: (hand[w] & TWINS) && claim != NONE
#endif
    :: (hand[w] & TWINS) && claim != NONE && is_stored -> known[w] = hand[w] & TWINS & ~claim
    fi
}

/* What a batch leaves pending: orders that another worker found trimmed since they were read, or so it may be. */
#if defined(RECORD_TRIMMED_AGAIN) || defined(GIVING_UP)
#define left(set, blank_ones, since_ones) 0
#elif defined(FIRST_STANDS_ALWAYS)
#define left(set, blank_ones, since_ones) ((set) & ORDERS & rejections & ~(blank_ones))
#else
#define left(set, blank_ones, since_ones) \
    ((set) & ORDERS & rejections & ~(accepted | duplicates) & ~(blank_ones) & (since_ones))
#endif

/* One entry's part of the transaction. An entry that is on record keeps its outcome. */
inline record_one(entry, is_known, is_bad)
{
    if
    :: is_bad ->
#ifdef GIVEN_AGAIN
        noted[0] = noted[0] | (entry & ORDERS & ~on_record);
        noted[1] = noted[1] | (entry & ORDERS & ~on_record);
        since[0] = since[0] | (entry & ORDERS & ~on_record);
        since[1] = since[1] | (entry & ORDERS & ~on_record);
        late_since = late_since | (entry & ORDERS & ~on_record);
#endif
        rejections = rejections | (entry & ~(accepted | duplicates))
#if defined(HELD_IS_DUPLICATE) || defined(DROP_UNPROVEN_DUPLICATE)
    :: !is_bad && !original_of(entry) && is_known -> duplicates = duplicates | entry
    :: !is_bad && !original_of(entry) && !is_known -> accepted = accepted | entry
#else
    :: !is_bad && !original_of(entry) -> accepted = accepted | entry
#endif
#ifdef NO_CONSTRAINT
    :: !is_bad && original_of(entry) && !is_known ->
        assert(!(accepted & entry) || I2_no_content_is_accepted_twice);
        accepted = accepted | entry
    :: !is_bad && original_of(entry) && is_known -> duplicates = duplicates | (entry & ~accepted)
#else
    :: !is_bad && original_of(entry) -> duplicates = duplicates | (entry & ~accepted)
#endif
    fi
}

/* One transaction for a batch; of twins in it, the first comes first. */
inline record(set, known_ones, blank_ones)
{
    if :: set & 1 -> record_one(1, (known_ones & 1), ((BAD | blank_ones | stays) & 1)) :: else fi;
    if :: set & 2 -> record_one(2, (known_ones & 2), ((BAD | blank_ones | stays) & 2)) :: else fi;
    if :: set & 4 -> record_one(4, (known_ones & 4), ((BAD | blank_ones | stays) & 4)) :: else fi;
    if :: set & 8 -> record_one(8, (known_ones & 8), ((BAD | blank_ones | stays) & 8)) :: else fi;
#ifndef JUDGE_AT_THE_END
    assert((accepted & TWINS) != TWINS || I2_no_content_is_accepted_twice);
    assert((!(accepted & duplicates) && !((accepted | duplicates) & rejections & ~again)) ||
        I3_every_entry_has_one_outcome);
    assert(!(duplicates & TWINS) || (accepted & TWINS) || a_duplicate_stands_beside_its_original)
#endif
}

/* One script call: the claim names the original, the entries are acknowledged. */
inline settle(set)
{
#ifndef JUDGE_AT_THE_END
    assert(!(set & ~on_record) || I4_acknowledged_only_after_commit);
    assert(!(set & ~(points | owed)) || I5_point_written_or_owed_before_acknowledgement);
#endif
    if
    :: (set & TWINS) && (accepted & TWINS) -> claim = accepted & TWINS
    :: else
    fi;
    pending = pending & ~set
}

/* A worker's transaction, with the note that its points are in hand, in place of the note of its last batch,
 * whose points are written or owed. Who gets Postgres' time with the answer is not misled by what was before. */
inline record_own(w)
{
    leave = left(hand[w], unseen(w), since_read(w));
    record((hand[w] & ~leave), known[w], unseen(w));
#if defined(STREAM_LOST) && !defined(NO_NOTE_IN_HAND)
    in_hand[w] = hand[w];
#endif
    known[w] = 0;
#ifdef UNSEEN
    blank[w] = 0;
#endif
#ifdef GIVEN_AGAIN
    noted[w] = 0;
    since[w] = 0;
#endif
}

/* The process ends and starts again. What it had in hand stays pending, and so its claim is held. */
inline crash(w)
{
    hand[w] = 0;
#ifdef UNSEEN
    blank[w] = 0;
#endif
#ifdef GIVEN_AGAIN
    noted[w] = 0;                                       /* it asks Postgres for its time at its start */
    since[w] = 0;
#endif
#ifdef STREAM_LOST
    left_in_hand = left_in_hand | in_hand[w];
    in_hand[w] = 0;
#endif
    known[w] = 0
}

inline note_reading(w)
{
#ifdef UNSEEN
    blank[w] = hand[w] & trimmed;
#endif
#ifdef GIVEN_AGAIN
    since[w] = noted[w];
#endif
    skip
}

proctype Worker(byte me)
{
    byte leave;
read_:
    if
    :: atomic { delivered < ENTRIES ->                  /* new entries: the next, or all */
            hand[me] = 1 << delivered;
            delivered++;
#ifdef BATCHES
            if
            :: hand[me] = hand[me] | behind(delivered); delivered = ENTRIES
            :: true
            fi;
#endif
            pending = pending | hand[me];
            note_reading(me) }
#ifndef NO_TAKEOVER
    :: atomic { pending -> pick(hand[me], pending);     /* its own, or those of a worker that may be alive */
            note_reading(me);
#ifdef CLAIM_DROPS_TRIMMED
            pending = pending & ~blank[me]
#endif
#ifdef GIVING_UP
            if
            :: FAULT(alone(hand[me])) -> blank[me] = hand[me]; given_up = given_up | hand[me]
            :: true
            fi
#endif
        }
#endif
    fi;

    if
    :: atomic { claim_and_decide(me) }
    :: atomic { alone(hand[me]) -> skip }               /* a single entry: claimed behind its record */
    :: atomic { FAULT(true) -> skip }                   /* Redis does not answer: unknown */
    :: atomic { FAULT(true) -> crash(me); goto read_ }
    fi;

#ifdef ACKNOWLEDGE_BEFORE_COMMIT
    atomic { settle(hand[me]) };
#endif

record_:
    if
    :: atomic {
#ifdef SKIP_POINT_OF_REDELIVERY
            fresh[me] = hand[me] & ~on_record;
#endif
            record_own(me);
#ifndef LEFT_IS_ACKNOWLEDGED
            hand[me] = hand[me] & ~leave;
#endif
            leave = 0 }
    :: atomic { FAULT(true) ->                          /* InfluxDB is known to be away */
            record_own(me);
            owed = owed | (hand[me] & ~points);
#ifdef STREAM_LOST
            in_hand[me] = 0;
#endif
#ifndef LEFT_IS_ACKNOWLEDGED
            hand[me] = hand[me] & ~leave;
#endif
            leave = 0;
            goto settle_ }
    :: atomic { FAULT(!late_record && !late_settle) ->
            late_record = hand[me];
#ifdef UNSEEN
            late_blank = blank[me];
#endif
#ifdef GIVEN_AGAIN
            late_since = since[me];
#endif
            goto record_ }
    :: atomic { FAULT(true) -> crash(me); goto read_ }
    fi;

#ifdef SETTLE_BEFORE_POINTS
    atomic { settle(hand[me]) };
#endif

    if
#ifdef SKIP_POINT_OF_REDELIVERY
    :: atomic { points = points | (fresh[me] & ~owed) }
#else
    :: atomic { points = points | (hand[me] & ~owed) }
#endif
    :: atomic { FAULT(true) -> owed = owed | (hand[me] & ~points) }     /* InfluxDB did not take them */
    :: atomic { FAULT(true) -> crash(me); goto read_ }
    fi;

settle_:
    if
    :: atomic { settle(hand[me]); hand[me] = 0; goto read_ }
    :: atomic { FAULT(!late_record && !late_settle) -> late_settle = hand[me]; goto settle_ }
    :: atomic { FAULT(true) -> crash(me); goto read_ }
    fi
}

inline forget_late_record()
{
#ifdef UNSEEN
    late_blank = 0;
#endif
#ifdef GIVEN_AGAIN
    late_since = 0;
#endif
    late_record = 0
}

/* What happens around the workers, at any moment. */
proctype Surroundings()
{
    byte some;
    do
    /* Redis loses a claim, or gives one back from the past or from the life of another database. */
    :: atomic { FAULT(true) ->
            if
            :: claim = NONE
            :: claim = LONG_AGO
            :: claim = ORIGINAL
            :: claim = TWIN
            fi }
    /* Redis forgets acknowledgements. */
    :: atomic { FAULT(!lost && (ALL & ~behind(delivered) & ~pending)) ->
            pick(some, (ALL & ~behind(delivered) & ~pending));
            pending = pending | some;
            some = 0 }
    /* Redis goes back to an earlier position of the group. */
    :: atomic { FAULT(!lost && delivered) ->
            do
            :: delivered -> delivered--
            :: break
            od;
            pending = pending & ~behind(delivered) }
    /* Redis loses the group, and a worker makes it again. */
    :: atomic { FAULT(!lost) ->
            pending = 0;
#ifdef RECREATE_AT_END
            delivered = ENTRIES
#else
            delivered = 0
#endif
        }
    /* A late request takes effect, or is lost. Known or not is the same to record. */
    :: atomic { late_record ->
            some = left(late_record, late_blank, late_since);
            record((late_record & ~some), 0, late_blank);
#if defined(STREAM_LOST) && !defined(NO_NOTE_IN_HAND)
            left_in_hand = left_in_hand | late_record;  /* nobody has heard of the note */
#endif
            some = 0;
            forget_late_record() }
    :: atomic { late_settle -> settle(late_settle); late_settle = 0 }
    :: atomic { late_record -> forget_late_record() }
    :: atomic { late_settle -> late_settle = 0 }
    /* InfluxDB is there, and the backlog is drained. */
    :: atomic { owed -> points = points | owed; owed = 0 }
#ifdef STREAM_LOST
    /* Points that a worker has had in hand for long are owed; it may be alive. */
    :: atomic { in_hand[0] -> owed = owed | (in_hand[0] & ~points); in_hand[0] = 0 }
    :: atomic { in_hand[1] -> owed = owed | (in_hand[1] & ~points); in_hand[1] = 0 }
#ifndef LEAVE_IN_HAND
    :: atomic { left_in_hand -> owed = owed | (left_in_hand & ~points); left_in_hand = 0 }
#endif
    /* Redis loses the stream. */
    :: atomic { FAULT(!lost) -> lost = true; pending = 0; delivered = ENTRIES }
#endif
#ifdef TRIMMING
    :: atomic { FAULT(pending & ~trimmed) ->
            pick(some, (pending & ~trimmed));
            trimmed = trimmed | some;
            some = 0 }
#endif
#ifdef GIVEN_AGAIN
    /* The stream is deleted, and its entries come again under their ids: others by all that Redis knows. */
    :: atomic { FAULT(trimmed) ->
            pending = 0;
            delivered = 0;
            again = ALL;
            trimmed = 0 }
#endif
#ifdef DELETE_CONSUMER
    :: atomic { pending & ~(hand[0] | hand[1]) -> pending = pending & (hand[0] | hand[1]) }
#endif
#ifdef POSTGRES_FORGETS
    :: atomic { FAULT(on_record) ->
            pick(some, on_record);
            accepted = accepted & ~some;
            duplicates = duplicates & ~some;
            rejections = rejections & ~some;
            some = 0 }
#endif
    :: atomic { !calm -> calm = true }
    /* The audit, when nothing is left to do. */
    :: atomic { calm && done && !audited ->
            assert(((lost || (on_record == ALL && !(ORDERS & ~(accepted | duplicates | trimmed | given_up)))) &&
                (!(duplicates & TWINS) || (accepted & TWINS))) || I1_no_order_is_missing);
#ifndef ORDERS_ALONE
            assert(points == on_record || I5_each_outcome_has_its_point);
#endif
            audited = true }
    od
}

init { atomic { run Worker(0); run Worker(1); run Surroundings() } }

/* What must never be: calm, and then no audit, however long the workers run. */
never {
    do
    :: !calm
    :: calm -> break
    od;
accept:
    do
    :: !audited
    od
}

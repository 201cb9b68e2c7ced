# shellcheck shell=bash
#
# The measures of test/bench/run: its contenders, and one function for each
# measure, which hands its figures to report().

# The options and NODE are set by the script that reads this file.
# shellcheck disable=SC2153

serial=0
rate=
seconds=
started=
loaded_mark=
values=()
holder=

# Progress goes where it does not mix with the table.
note()
{
	printf '%s\n' "$*" >&2
}

#
# The database and the stand-in's ledger
#

# Run statements, each in a transaction of its own.
sql()
{
	local statement
	local -a args=()

	for statement in "$@"; do
		args+=(-c "$statement")
	done
	run psql -XqAt -v ON_ERROR_STOP=1 "${args[@]}"
}

# Make the extension and a server: create_timpush DATABASE
create_timpush()
{
	sql "\\connect $1" "CREATE EXTENSION timpush" \
		"CREATE SERVER chat FOREIGN DATA WRAPPER timpush
		   OPTIONS (sdkappid '$SDKAPPID', host 'localhost:$PORT', ca_file '$CA',
					requests_per_second '0', max_in_flight '$IN_FLIGHT')" \
		"CREATE USER MAPPING FOR PUBLIC SERVER chat
		   OPTIONS (identifier '$IDENTIFIER', secret_key '$KEY')"
}

# Change an option of the server: set_server NAME VALUE
set_server()
{
	sql "ALTER SERVER chat OPTIONS (SET $1 '$2')"
}

restart_database()
{
	run pg_ctl -D "$SCRATCH/bench" -l "$SCRATCH/log/bench.log" -w -s restart
}

# Where the ledger ends now.
ledger_mark()
{
	if [[ -e $LEDGER ]]; then stat -c %s "$LEDGER"; else echo 0; fi
}

# Put the requests that the ledger got since a mark into bench.ledger.
read_ledger()
{
	sql "TRUNCATE bench.raw, bench.ledger" \
		"\\copy bench.raw FROM PROGRAM 'tail -c +$(($1 + 1)) $LEDGER | grep event.:.request' (FORMAT csv, QUOTE E'\\001', DELIMITER E'\\002')" \
		"INSERT INTO bench.ledger
		 SELECT (line->>'time')::bigint, jsonb_array_length(line->'accounts'), line->'accounts'->>0
		   FROM bench.raw"
}

#
# The contenders; each sets "rate", in pushes a second
#

# The bare loop: run_bare PUSHES [OPTION]...
run_bare()
{
	local line

	serial=$((serial + 1))
	line=$(run "$SCRATCH/bare" --port "$PORT" --ca "$CA" --key "$KEY" \
		--sdkappid "$SDKAPPID" --identifier "$IDENTIFIER" \
		--in-flight "$IN_FLIGHT" --requests "$1" --prefix "b$serial" "${@:2}")
	rate=$(field per_second "$line")
	note "  bare loop${2:+ ${*:2}}: $line"
}

# The hand-written worker, which gets some rows more than it is measured with,
# since such a worker runs for long and its code is compiled by then:
# run_node PUSHES [OPTION]...
run_node()
{
	local line warm=5000 all

	all=$(($1 + warm))
	serial=$((serial + 1))
	sql "TRUNCATE node_outbox" "SELECT bench.enqueue_node('n$serial', $all)" \
		"VACUUM ANALYZE node_outbox" >/dev/null
	line=$(run "$(command -v node)" "$SCRATCH/node/worker.mjs" --port "$PORT" \
		--ca "$CA" --key "$KEY" --sdkappid "$SDKAPPID" \
		--identifier "$IDENTIFIER" --warm "$warm" "${@:2}")
	[[ $(field ok "$line") == "$all" ]] || die "the Node worker ended with: $line"
	rate=$(field per_second "$line")
	note "  Node worker${2:+ ${*:2}}: $line"
}

# The processor time that a process has used, in seconds.
cpu_time()
{
	awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print ($12 + $13) / hz }' \
		"/proc/$1/stat"
}

worker_pid()
{
	sql "SELECT pid FROM pg_stat_activity
		 WHERE backend_type LIKE 'timpush worker%' AND datname = current_database()"
}

# timpush: the rows are committed in one transaction, and the clock runs from
# just before that commit to the commit of the last outcome.  Every push must
# have been sent and received once.  Also sets "seconds" and leaves the calls
# in bench.ledger: run_timpush PUSHES [CONTENTS [TIMEOUT]]
run_timpush()
{
	local sent received pid cpu=0

	empty_timpush
	pid=$(worker_pid)
	[[ -z $pid ]] || cpu=$(cpu_time "$pid")
	load_timpush "$1" "${2:-0}"
	wait_drained "${3:-120}"
	[[ -n $pid ]] || pid=$(worker_pid)
	[[ -z $pid ]] || cpu=$(calc "$(cpu_time "$pid") - $cpu")
	seconds=$(sql "SELECT max(extract(epoch FROM pg_xact_commit_timestamp(xmin))) - $started / 1e6 FROM push_result")
	sent=$(sql "SELECT sum(accounts) FROM push_result WHERE state = 'sent'")
	read_ledger "$loaded_mark"
	received=$(sql "SELECT sum(accounts) FROM bench.ledger")
	[[ $sent == "$1" && $received == "$1" ]] ||
		die "of $1 pushes, ${sent:-0} were sent and ${received:-0} received"
	rate=$(calc "$1 / $seconds")
	note "  timpush: pushes=$1 seconds=$seconds cpu_seconds=$cpu per_second=$rate"
}

empty_timpush()
{
	sql "TRUNCATE push_outbox, push_request, push_result, push_error"
}

# Enqueue in one transaction; sets "started" (microseconds) and "loaded_mark".
load_timpush()
{
	serial=$((serial + 1))
	loaded_mark=$(ledger_mark)
	started=$(sql "CALL bench.load('t$serial', $1, $2)")
}

# Wait until nothing is open; if that takes too long, say what is.
wait_drained()
{
	sql "CALL bench.wait_drained($1)" || {
		sql "SELECT 'waiting: ' || count(*) FROM push_outbox" \
			"SELECT 'requests ' || state || ': ' || count(*) || ', ' || coalesce(max(error_info), '')
			   FROM push_request GROUP BY state" \
			"SELECT 'server ' || server || ': ' || state || ', ' || coalesce(reason, '')
			   FROM push_server" >&2
		tail -n 20 "$SCRATCH/log/bench.log" >&2
		die "timpush does not come to an end"
	}
}

# Stop and start all sending.
gate()
{
	sql "ALTER SYSTEM SET timpush.enabled = $1" "SELECT pg_reload_conf()" >/dev/null
	sleep 0.5
}

#
# The measures
#

# Distinct pushes of one account each without a limit.
measure_drain()
{
	local i o
	local -a ours=() bare=() http1=() node=() batch=() tuned=() more

	note "drain: $ROWS distinct pushes, $ROUNDS rounds"
	set_server requests_per_second 0
	run_timpush 1000
	for ((i = 0; i < ROUNDS; i++)); do
		run_bare "$ROWS"
		bare+=("$rate")
		run_timpush "$ROWS"
		ours+=("$rate")
		if [[ $NODE == yes ]]; then
			# a transaction takes as many rows as it can have in flight
			run_node "$ROWS" --batch 32
			node+=("$rate")
			# tuned: larger batches, and one read while another is sent
			run_node "$ROWS" --batch 100
			batch+=("$rate")
			run_node "$ROWS" --batch 100 --loops 2
			tuned+=("$rate")
		fi
		run_bare "$ROWS" --http1
		http1+=("$rate")
	done

	o=$(median "${ours[@]}")
	more=("rows=$ROWS" "rounds=$ROUNDS" "in_flight=$IN_FLIGHT")
	compare 'distinct pushes / bare loop' "$o" "$(median "${bare[@]}")" pushes/s '>= 0.7' "${more[@]}"
	compare 'distinct pushes / bare loop, HTTP/1.1' "$o" "$(median "${http1[@]}")" pushes/s - "${more[@]}"
	if [[ $NODE == yes ]]; then
		compare 'distinct pushes / Node worker' "$o" "$(median "${node[@]}")" pushes/s '> 1' "${more[@]}"
		compare 'distinct pushes / Node worker, batches of 100' "$o" "$(median "${batch[@]}")" pushes/s - "${more[@]}"
		compare 'distinct pushes / Node worker, two loops of 100' "$o" "$(median "${tuned[@]}")" pushes/s - "${more[@]}"
	fi
}

# From the return of a commit to the arrival at the stand-in, one at a time.
# The ledger's time is that of a request read and checked, so it is a little
# later than its first byte.
measure_latency()
{
	note "latency: $SINGLES single pushes on an idle, warm worker"
	set_server requests_per_second 0
	one_by_one
	report 'commit to arrival, median' "$(median "${values[@]}")" - ms - '< 5' "pushes=$SINGLES"
	report 'commit to arrival, p95' "$(quantile 0.95 "${values[@]}")" - ms - - "pushes=$SINGLES"
}

# Sets "values", in ms.
one_by_one()
{
	local mark

	serial=$((serial + 1))
	mark=$(ledger_mark)
	sql "CALL bench.one_by_one('warm$serial', 20, 0.02)" \
		"TRUNCATE bench.committed" \
		"CALL bench.one_by_one('l$serial', $SINGLES, 0.02)"
	wait_drained 30
	read_ledger "$mark"
	mapfile -t values < <(sql "SELECT (l.at - c.at) / 1000.0 FROM bench.committed c JOIN bench.ledger l USING (account)")
	[[ ${#values[@]} == "$SINGLES" ]] ||
		die "of $SINGLES pushes, ${#values[@]} were received"
}

# What the worker has for itself after 10,000 and after 100,000 pushes.
measure_memory()
{
	local first last pid i

	note "memory: of the worker after 10,000 and after 100,000 pushes"
	restart_database
	set_server requests_per_second 0
	run_timpush 10000
	pid=$(worker_pid)
	[[ -n $pid ]] || die "pg_stat_activity shows no worker of timpush"
	first=$(own_memory "$pid")
	note "  after 10,000 pushes: $first kB"
	for ((i = 2; i <= 10; i++)); do
		run_timpush 10000
	done
	last=$(own_memory "$pid")
	note "  after 100,000 pushes: $last kB"
	[[ $(worker_pid) == "$pid" ]] || die "another worker took over in between"
	report 'worker memory, growth 10,000 to 100,000' "$(calc "($last - $first) / 1024")" - MB - '<= 5' \
		"kb_after_10000=$first" "kb_after_100000=$last"
}

# The memory of a process that is not shared, in kB.
own_memory()
{
	awk '/^Pss_Anon:/ { a = $2 } /^Private_Dirty:/ { d = $2 }
		 END { print a != "" ? a : d }' "/proc/$1/smaps_rollup"
}

# Pushes that share their content, at a rate, against rows / 500 / rate.
measure_coalesce()
{
	local pushes=100000 limit=300 n=$ROUNDS contents calls most span theory target i
	local -a times

	if [[ $LARGE == yes ]]; then
		pushes=1000000 limit=30 n=1
	fi
	note "coalesce: $pushes single-account pushes at $limit calls/s"
	set_server requests_per_second "$limit"
	theory=$(calc "$pushes / 500 / $limit")
	for contents in 1 10; do
		times=()
		most=0
		for ((i = 0; i < n; i++)); do
			run_timpush "$pushes" "$contents" 300
			times+=("$seconds")
			IFS='|' read -r calls span most < <(sql "
				SELECT count(*), (max(at) - min(at)) / 1e6,
					   greatest($most, bench.most_calls_in_a_second())
				  FROM bench.ledger")
			note "    contents=$contents calls=$calls first_to_last_call=$span most_in_a_second=$most"
		done
		target='<= 1.03'
		[[ $contents == 1 ]] || target='<= 1.05'
		compare "time for $pushes pushes of $contents content(s) / theory" "$(median "${times[@]}")" \
			"$theory" s "$target" "limit=$limit" "rounds=$n" "first_to_last_call=$span"
		compare "calls made / fewest possible, $contents content(s)" "$calls" "$(calc "$pushes / 500")" calls -
		report "most calls in any one second, $contents content(s)" "$most" "$limit" calls - "<= $((limit + 1))"
	done
}

# A steady stream of ten contents, from enqueue to the commit of the outcome.
measure_steady()
{
	local arriving=2000 limit=30 span=20 warm=3 mark arrival p50 p99 early late

	[[ $LARGE == no ]] || span=120
	note "steady: $arriving pushes/s of ten contents for $span s, $limit calls/s"
	set_server requests_per_second "$limit"
	empty_timpush
	serial=$((serial + 1))
	mark=$(ledger_mark)
	sql "CALL bench.stream('s$serial', $arriving, $span, 10)"
	wait_drained 60
	read_ledger "$mark"
	IFS='|' read -r arrival p50 p99 early late < <(sql "
		SELECT count(*) / extract(epoch FROM max(enqueued_at) - min(enqueued_at)),
			   percentile_cont(0.5) WITHIN GROUP (ORDER BY s),
			   percentile_cont(0.99) WITHIN GROUP (ORDER BY s),
			   percentile_cont(0.99) WITHIN GROUP (ORDER BY s) FILTER (WHERE age < $span / 2.0),
			   percentile_cont(0.99) WITHIN GROUP (ORDER BY s) FILTER (WHERE age >= $span / 2.0)
		  FROM (SELECT enqueued_at,
					   extract(epoch FROM pg_xact_commit_timestamp(xmin) - enqueued_at) AS s,
					   extract(epoch FROM enqueued_at - min(enqueued_at) OVER ()) AS age
				  FROM push_result
				 WHERE state = 'sent') r
		 WHERE age >= $warm")
	report 'steady stream, arriving' "$arrival" "$arriving" pushes/s - -
	report 'steady stream, enqueue to sent, median' "$p50" - s - -
	report 'steady stream, enqueue to sent, p99' "$p99" - s - '< 0.5'
	compare 'steady stream, p99 late / early' "$late" "$early" s -
	report 'steady stream, most calls in any one second' "$(sql "SELECT bench.most_calls_in_a_second()")" \
		"$limit" calls - "<= $((limit + 1))"
}

# Enqueueing against inserting the same rows into a table like push_outbox,
# with its constraints and indexes but without its trigger.
measure_enqueue()
{
	local n=100000 i columns pushes
	local -a ours=() direct=() plain=()

	note "enqueue: $n pushes, $ROUNDS rounds"
	gate off
	empty_timpush
	pushes="'administrator', ARRAY['e_' || i], 'Order ' || i, 'Your order ' || i || ' has left our warehouse.'"
	columns=$(sql "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum)
					 FROM pg_attribute
					WHERE attrelid = 'push_outbox'::regclass AND attnum > 0
					  AND NOT attisdropped AND attidentity = '' AND attgenerated = ''")
	sql "SELECT count(timpush_batch($pushes)) FROM generate_series(1, $n) i" \
		"CREATE TABLE bench.source AS TABLE push_outbox" \
		"VACUUM ANALYZE bench.source" \
		"CREATE TABLE bench.plain (LIKE push_outbox INCLUDING ALL)" >/dev/null
	for ((i = 0; i < ROUNDS; i++)); do
		empty_timpush
		ours+=("$(timed "SELECT count(timpush_batch($pushes)) FROM generate_series(1, $n) i")")
		sql "TRUNCATE bench.plain"
		plain+=("$(timed "INSERT INTO bench.plain ($columns) SELECT $columns FROM bench.source")")
		empty_timpush
		direct+=("$(timed "INSERT INTO push_outbox (from_account, to_accounts, title, descr)
						   SELECT $pushes FROM generate_series(1, $n) i")")
		note "  timpush_batch: ${ours[-1]} s, plain insert: ${plain[-1]} s, insert into push_outbox: ${direct[-1]} s"
	done
	empty_timpush
	sql "DROP TABLE bench.source, bench.plain"
	gate on
	compare "enqueue of $n pushes / plain insert" "$(median "${ours[@]}")" "$(median "${plain[@]}")" \
		s '<= 1.5' "rounds=$ROUNDS"
	compare "insert of $n rows into push_outbox / plain insert" "$(median "${direct[@]}")" \
		"$(median "${plain[@]}")" s - "rounds=$ROUNDS"
}

# The seconds that a statement takes, with its commit.
timed()
{
	sql "CHECKPOINT" "SELECT bench.now_us()" "$1" "SELECT bench.now_us()" |
		awk 'NR == 1 { t = $1 } END { printf "%.6f", ($1 - t) / 1e6 }'
}

# The rate of the first 50,000 of a large backlog against that of 50,000.
measure_backlog()
{
	local base=50000 waiting=500000 n=$ROUNDS i
	local -a ours=() small=()

	if [[ $LARGE == yes ]]; then
		waiting=5000000 n=1
	fi
	note "backlog: drain rate with $waiting waiting against $base"
	set_server requests_per_second 0
	for ((i = 0; i < n; i++)); do
		run_timpush "$base"
		small+=("$rate")
		empty_timpush
		load_timpush "$waiting" 0
		sql "CALL bench.wait_finished($base, 300)"
		gate off
		sql "CALL bench.wait_settled(30)"
		rate=$(sql "SELECT $base / (extract(epoch FROM pg_xact_commit_timestamp(xmin)) - $started / 1e6)
					  FROM push_result WHERE state = 'sent'
					 ORDER BY pg_xact_commit_timestamp(xmin) OFFSET $base - 1 LIMIT 1")
		ours+=("$rate")
		note "  $waiting waiting: per_second=$rate"
		empty_timpush
		gate on
	done
	compare "drain with $waiting waiting / with $base" "$(median "${ours[@]}")" "$(median "${small[@]}")" \
		pushes/s '>= 0.9' "rounds=$n"
}

# The rate with a transaction held open elsewhere against that without.
measure_held()
{
	local base=50000 i
	local -a ours=() without=()

	note "held: drain rate while another session holds a transaction open"
	set_server requests_per_second 0
	for ((i = 0; i < ROUNDS; i++)); do
		run_timpush "$base"
		without+=("$rate")
		hold_transaction
		run_timpush "$base"
		release_transaction
		ours+=("$rate")
	done
	compare 'drain with a transaction held open / without' "$(median "${ours[@]}")" \
		"$(median "${without[@]}")" pushes/s '>= 0.9' "rounds=$ROUNDS"
}

# A transaction with an xid and a snapshot, in the background.
hold_transaction()
{
	local tries=0

	sql "SET application_name = 'bench_held'" \
		"BEGIN ISOLATION LEVEL REPEATABLE READ" "SELECT pg_current_xact_id()" \
		"SELECT pg_sleep(3600)" >/dev/null 2>&1 &
	holder=$!
	until [[ $(sql "SELECT count(*) FROM pg_stat_activity
					 WHERE application_name = 'bench_held' AND backend_xmin IS NOT NULL
					   AND backend_xid IS NOT NULL") == 1 ]]; do
		tries=$((tries + 1))
		[[ $tries -lt 100 ]] || die "the transaction to be held open does not come up"
		sleep 0.1
	done
}

release_transaction()
{
	sql "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
		 WHERE application_name = 'bench_held'" >/dev/null
	wait "$holder" || true
}

# Tables, indexes and what is kept out of line, in kB.
journal_kb()
{
	sql "SELECT sum(pg_total_relation_size(t)) / 1024
		 FROM unnest('{push_outbox,push_request,push_result,push_error}'::regclass[]) t"
}

# What is removed leaves room for what comes, while pushes come and go.
measure_bloat()
{
	local early='' late i

	note "bloat: 400,000 pushes with a retention of 10 s"
	sql "ALTER SYSTEM SET timpush.retention = '10s'" \
		"ALTER SYSTEM SET autovacuum_naptime = '1s'" "SELECT pg_reload_conf()" >/dev/null
	set_server requests_per_second 0
	empty_timpush
	for ((i = 1; i <= 80; i++)); do
		load_timpush 5000 0
		wait_drained 120
		sleep 0.7
		[[ $((i % 10)) -eq 0 ]] || continue
		late=$(journal_kb)
		[[ $i -ne 40 ]] || early=$late
		note "  after $((i * 5000)) pushes: $late kB, $(sql "SELECT count(*) FROM push_result") of them are kept"
	done
	sql "ALTER SYSTEM RESET timpush.retention" "ALTER SYSTEM RESET autovacuum_naptime" \
		"SELECT pg_reload_conf()" >/dev/null
	report 'journal, 400,000 pushes to 200,000' "$late" "$early" kB \
		"$(calc "$late / $early")" '<= 1.1'
}

# Many databases that have timpush and nothing to do, and one that sends.
measure_databases()
{
	local i began looked took=0 n most=0 launcher before median_alone p95_alone span=20

	note "databases: $DATABASES that have timpush, one of which sends"
	set_server requests_per_second 0
	restart_database
	one_by_one
	median_alone=$(median "${values[@]}")
	p95_alone=$(quantile 0.95 "${values[@]}")

	sql "CREATE DATABASE bench_template"
	create_timpush bench_template
	for ((i = 1; i <= DATABASES; i++)); do
		sql "CREATE DATABASE bench_$i TEMPLATE bench_template"
	done

	# a template's copies are many pages to be written, and autovacuum looks
	# into each database too
	sql "CHECKPOINT" "ALTER SYSTEM SET autovacuum = off"
	# what a worker has done in a database is counted when it has left
	began=$(date +%s.%N)
	restart_database
	looked=0
	while [[ $looked -lt $DATABASES ]]; do
		IFS='|' read -r looked n < <(sql "
			SELECT (SELECT count(*) FROM pg_stat_database
					 WHERE datname ~ '^bench_[0-9]' AND xact_commit > 0),
				   (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'timpush worker')")
		[[ $n -le $most ]] || most=$n
		took=$(calc "$(date +%s.%N) - $began")
		[[ ${took%.*} -lt 300 ]] || die "after ${took%.*} s, $looked databases have been looked at"
		sleep 0.05
	done
	report "$DATABASES databases, start until all were looked at" "$took" - s - -
	report "$DATABASES databases, most workers at once meanwhile" "$most" - processes - -

	wait_no_worker
	launcher=$(sql "SELECT pid FROM pg_stat_activity WHERE backend_type = 'timpush launcher'")
	before=$(switches "$launcher") n=$(transactions)
	sleep "$span"
	report "$DATABASES databases, wake-ups in $span s of idleness" \
		"$(($(switches "$launcher") - before))" - - - '<= 1'
	report "$DATABASES databases, transactions meanwhile" "$(($(transactions) - n))" - - - '<= 0'
	report "$DATABASES databases, memory of the launcher" \
		"$(calc "$(own_memory "$launcher") / 1024")" - MB - -

	one_by_one
	report 'memory of the one worker' "$(calc "$(own_memory "$(worker_pid)") / 1024")" - MB - -
	report "workers while one of $DATABASES databases sends" \
		"$(sql "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'timpush worker'")" \
		- processes - '<= 1'
	compare "commit to arrival, median, one of $DATABASES databases / alone" \
		"$(median "${values[@]}")" "$median_alone" ms '<= 1.2' "pushes=$SINGLES"
	compare "commit to arrival, p95, one of $DATABASES databases / alone" \
		"$(quantile 0.95 "${values[@]}")" "$p95_alone" ms - "pushes=$SINGLES"
	for ((i = 1; i <= DATABASES; i++)); do
		sql "DROP DATABASE bench_$i"
	done
	sql "ALTER SYSTEM RESET autovacuum" "SELECT pg_reload_conf()" >/dev/null
}

wait_no_worker()
{
	local tries=0

	until [[ $(sql "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'timpush worker'") == 0 ]]; do
		tries=$((tries + 1))
		[[ $tries -lt 300 ]] || die "workers stay where there is nothing to do"
		sleep 0.1
	done
	sleep 1
}

# How often a process has gone to sleep.
switches()
{
	awk '/^voluntary_ctxt_switches:/ { print $2 }' "/proc/$1/status"
}

# Of all databases but the one that asks.
transactions()
{
	sql "SELECT sum(xact_commit + xact_rollback) FROM pg_stat_database
		 WHERE datname IS DISTINCT FROM current_database()"
}

# shellcheck shell=bash
#
# What the scripts in this folder share: installing what is missing, a scratch
# folder that holds everything they make, a private copy of PostgreSQL in it,
# and leaving nothing behind.
#
# To be sourced by bash after "set -euo pipefail".  The order of use is
#
#	need "why" package...		as often as wanted
#	install_missing				nothing is asked or said if nothing is missing
#	scratch_open				sets SCRATCH and the traps
#	pg_private [DIR]			sets BINDIR, PG_CONFIG, PKGLIBDIR
#	copy_tree DIR				the source tree into a folder under SCRATCH
#	run COMMAND...				as an unprivileged user, in a session of its own
#
# Nothing is written outside SCRATCH: neither into the source tree nor into
# the system's PostgreSQL.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
PROGRAM=${0##*/}
PG_MAJOR=${PG_MAJOR:-15}
KEEP=${KEEP:-no}

SCRATCH=
CHILD=
MISSING=()
WANTED=()

# What a build takes, and what the stand-in for the remote API takes.
# shellcheck disable=SC2034
BUILD_PACKAGES=(make gcc libc6-dev "postgresql-$PG_MAJOR"
	"postgresql-server-dev-$PG_MAJOR" libcurl4-openssl-dev libssl-dev
	zlib1g-dev)
# shellcheck disable=SC2034
FAKE_PACKAGES=(nginx-light libnginx-mod-http-lua lua-cjson lua-luaossl
	lua-zlib openssl curl)

say()
{
	printf '%s\n' "$*"
}

die()
{
	printf '%s: %s\n' "$PROGRAM" "$*" >&2
	exit 1
}

#
# Packages
#

# Note what a purpose needs, and which of it is not there.
need()
{
	local purpose=$1 package have=
	local -a missing=()

	shift
	WANTED+=("$@")
	if command -v dpkg-query >/dev/null; then
		# shellcheck disable=SC2016
		have=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "$@" \
			2>/dev/null) || true
	fi
	for package in "$@"; do
		[[ $'\n'$have$'\n' == *$'\ninstalled '"$package"$'\n'* ]] ||
			missing+=("$package")
	done
	[[ ${#missing[@]} -eq 0 ]] && return
	MISSING+=("${missing[@]}")
	PURPOSES+="  $purpose: ${missing[*]}"$'\n'
}
PURPOSES=

# Install what need() found missing.  TIMPUSH_NO_INSTALL=1 leaves that out,
# for a machine where the same things are there by other means.
install_missing()
{
	local -a root=()

	[[ ${#MISSING[@]} -eq 0 || ${TIMPUSH_NO_INSTALL:-} == 1 ]] && return
	if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null
	then
		say "This is not a Debian system, so nothing is installed for you. Needed are, by" >&2
		say "the names of Debian 12: ${WANTED[*]}" >&2
		say "If they are here, set TIMPUSH_NO_INSTALL=1 and, for PostgreSQL, PG_CONFIG." >&2
		exit 1
	fi

	say "Missing on this machine:"
	printf '%s' "$PURPOSES"
	if [[ $EUID -ne 0 ]]; then
		command -v sudo >/dev/null ||
			die "they are installed by root, and there is no sudo here; as root, run: apt-get install --no-install-recommends ${MISSING[*]}"
		say "Installing them takes root's rights: sudo may ask for your password."
		root=(sudo)
	fi
	say "Installing them with apt-get; no service is started and no cluster created."
	"${root[@]}" bash -c "$(declare -f install_as_root install_undo)
		install_as_root \"\$@\"" timpush-install "$PG_MAJOR" "${MISSING[@]}" \
		</dev/null ||
		die "the packages could not be installed"
}

# Runs in a shell of root's own.  Debian starts services and creates a first
# cluster when it installs them; both are forbidden for the time it takes.
install_as_root()
{
	local policy=/usr/sbin/policy-rc.d
	local dropin=/etc/postgresql-common/createcluster.d/timpush-install.conf
	local pg=$1 log dir service program
	local -a new_services=()
	local -a apt=(apt-get -q -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)

	shift
	set -euo pipefail
	umask 022
	export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
	export APT_LISTCHANGES_FRONTEND=none

	made=()
	trap install_undo EXIT
	trap 'exit 130' INT TERM HUP
	log=$(mktemp)
	made+=("$log")

	# Should this shell be killed before it can take the file away again, the
	# file does so itself.
	if [[ ! -e $policy ]]; then
		made+=("$policy")
		cat >"$policy" <<-END
			#!/bin/sh
			# Of timpush's test/lib.sh, which is installing packages: starts no service.
			if grep -qs timpush-install /proc/$$/cmdline; then exit 101; fi
			rm -f "\$0"
		END
		chmod 755 "$policy"
	fi

	if [[ ! -e /usr/lib/postgresql/$pg/bin/postgres && ! -e $dropin ]]; then
		for dir in /etc/postgresql-common /etc/postgresql-common/createcluster.d
		do
			if [[ ! -d $dir ]]; then
				mkdir "$dir"
				made+=("$dir")
			fi
		done
		made+=("$dropin")
		echo "create_main_cluster = false" >"$dropin"
	fi
	for program in /usr/sbin/nginx /usr/bin/etcd /usr/bin/patroni; do
		[[ -e $program ]] || new_services+=("${program##*/}")
	done

	if ! "${apt[@]}" -s install --no-install-recommends "$@" >"$log" 2>&1; then
		echo "  (fetching the lists of packages first)"
		"${apt[@]}" update >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
	fi
	if ! "${apt[@]}" install --no-install-recommends "$@" >"$log" 2>&1; then
		echo "  (the lists of packages look old: fetching them, and once more)"
		"${apt[@]}" update >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
		"${apt[@]}" install --no-install-recommends "$@" >"$log" 2>&1 ||
			{ tail -n 40 "$log" >&2; exit 1; }
	fi

	for service in "${new_services[@]}"; do
		[[ -e /etc/init.d/$service ]] || continue
		update-rc.d "$service" disable >/dev/null 2>&1 || true
		echo "$service is not started at boot; \"update-rc.d $service enable\" would change that."
	done
	if [[ " $* " == *" postgresql-$pg "* ]]; then
		echo "No cluster was created; \"pg_createcluster $pg main --start\" would make one."
	fi
	echo "To take all of it off again: apt-get purge --autoremove $*"
}

install_undo()
{
	local i

	for ((i = ${#made[@]} - 1; i >= 0; i--)); do
		if [[ -d ${made[i]} ]]; then
			rmdir --ignore-fail-on-non-empty "${made[i]}"
		else
			rm -f "${made[i]}"
		fi
	done
}

#
# The scratch folder, and the user that works in it
#

# Everything happens in one new folder.  PostgreSQL refuses to run as root, so
# root's tests run as nobody, who owns nothing and is nobody's database
# superuser: a test that goes astray cannot reach a cluster of this machine.
scratch_open()
{
	local base=${TMPDIR:-/tmp} group

	base=$(cd "$base" 2>/dev/null && pwd -P) || die "there is no folder \"$base\""
	if [[ ${#base} -gt 50 ]]; then
		say "TMPDIR is too long for the name of a unix socket; using /tmp."
		base=/tmp
	fi
	trap cleanup EXIT
	trap 'interrupted 130' INT
	trap 'interrupted 143' TERM
	trap 'interrupted 129' HUP
	trap 'interrupted 141' PIPE
	SCRATCH=$(mktemp -d "$base/timpush.XXXXXX")

	TEST_USER=$(id -un)
	AS_USER=()
	if [[ $EUID -eq 0 ]]; then
		TEST_USER=nobody
		group=$(id -g nobody)
		AS_USER=(setpriv "--reuid=$(id -u nobody)" "--regid=$group"
			--clear-groups --inh-caps=-all --no-new-privs)
		chown "$TEST_USER:$group" "$SCRATCH"
	fi
	set_environment
	as_user mkdir "$SCRATCH/tmp" "$SCRATCH/home" "$SCRATCH/log" ||
		die "user $TEST_USER cannot write to $SCRATCH; set TMPDIR to a folder that all may enter"
}

# What commands see: nothing of the caller's environment (proxies, PG*, LC_*,
# PERL5LIB and the like), but any name=value given here.
set_environment()
{
	ENVIRONMENT=("HOME=$SCRATCH/home" "TMPDIR=$SCRATCH/tmp"
		"USER=$TEST_USER" "LOGNAME=$TEST_USER" LANG=C.UTF-8
		"TERM=${TERM:-dumb}"
		"PATH=${BINDIR:+$BINDIR:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
		"$@")
}

# A short command as that user, who may not be able to enter the caller's
# working directory.
as_user()
{
	(cd "$SCRATCH" && exec "${AS_USER[@]}" "$@")
}

# Run a command and wait for it in a way that a signal interrupts.  The
# command and its children make up a session that can be ended as a whole.
run()
{
	run_in "$SCRATCH" "$@"
}

run_in()
{
	local dir=$1

	shift
	attended "${AS_USER[@]}" env -i --default-signal=INT,QUIT -C "$dir" \
		"${ENVIRONMENT[@]}" "$@"
}

# The same as the caller and in his environment.
attended()
{
	local status=0

	setsid "$@" </dev/null &
	CHILD=$!
	wait "$CHILD" || status=$?
	CHILD=
	return "$status"
}

# The processes that live in the scratch folder: those whose program, working
# directory or open files are there.  Somebody's shell or pager in it is not
# meant, hence the look at the terminal.
ours()
{
	local link pid fields
	local -A seen=()

	while read -r link; do
		pid=${link#/proc/}
		pid=${pid%%/*}
		[[ $pid == "$$" || $pid == "$BASHPID" || -n ${seen[$pid]:-} ]] && continue
		if [[ $link != */exe ]]; then
			fields=$(cat "/proc/$pid/stat" 2>/dev/null) || continue
			read -ra fields <<<"${fields##*) }"
			# shellcheck disable=SC2128
			[[ ${fields[0]} == Z || ${fields[4]} != 0 ]] && continue
		fi
		seen[$pid]=1
		echo "$pid"
	done < <(find /proc/[0-9]*/exe /proc/[0-9]*/cwd /proc/[0-9]*/fd \
		-maxdepth 1 -lname "$SCRATCH/*" 2>/dev/null)
}

describe()
{
	local pid

	for pid in "$@"; do
		printf '%s %s\n' "$pid" \
			"$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | cut -c 1-150)"
	done
}

# Note our processes, in "pids", and the shared memory that they have made: a
# server that is killed, or interrupted in initdb, leaves it behind.
note_ours()
{
	local id pid

	mapfile -t pids < <(ours)
	for pid in "${pids[@]}"; do
		mapfile -t -O "${#shared[@]}" shared < <(
			grep -o '/dev/shm/PostgreSQL\.[0-9]*' "/proc/$pid/maps" 2>/dev/null |
				sort -u)
	done
	while read -r id _ pid _; do
		[[ " ${pids[*]} " == *" $pid "* ]] && segments+=("$id")
	done < <(ipcs -m -p)
	return 0
}

# End every process of ours: first the command that is running, with time to
# end its own servers, then postmasters in immediate mode, then the rest.
stop_all()
{
	local file pid id tries
	local -a pids=() shared=() segments=()

	note_ours
	if [[ -n $CHILD ]]; then
		kill -TERM -- "-$CHILD" 2>/dev/null
		for ((tries = 0; tries < 50; tries++)); do
			kill -0 -- "-$CHILD" 2>/dev/null || break
			sleep 0.1
		done
		kill -KILL -- "-$CHILD" 2>/dev/null
		CHILD=
		note_ours
	fi

	while read -r file; do
		pid=$(head -n 1 "$file" 2>/dev/null)
		[[ " ${pids[*]} " == *" $pid "* ]] && kill -QUIT "$pid" 2>/dev/null
	done < <(find "$SCRATCH" -name postmaster.pid 2>/dev/null)

	for ((tries = 0; tries < 100; tries++)); do
		[[ ${#pids[@]} -eq 0 ]] && break
		for pid in "${pids[@]}"; do
			if [[ $tries -ge 80 ]]; then
				kill -KILL "$pid" 2>/dev/null
			elif [[ $tries -eq 0 && $(readlink "/proc/$pid/exe") != */postgres* ]]
			then
				kill -TERM "$pid" 2>/dev/null
			fi
		done
		sleep 0.1
		mapfile -t pids < <(ours)
	done

	for file in "${shared[@]}"; do
		rm -f "$file"
	done
	for id in "${segments[@]}"; do
		ipcrm -m "$id" 2>/dev/null
	done
	return 0
}

cleanup()
{
	local status=$?

	trap - EXIT
	trap '' INT TERM HUP PIPE
	set +e
	scratch_close
	exit "$status"
}

scratch_close()
{
	[[ -n $SCRATCH && -d $SCRATCH ]] || return 0
	stop_all || true
	if [[ $KEEP == yes ]]; then
		say "Kept: $SCRATCH"
	else
		rm -rf --one-file-system "$SCRATCH" 2>/dev/null ||
			{ sleep 1; rm -rf --one-file-system "$SCRATCH"; }
	fi
	SCRATCH=
}

interrupted()
{
	trap '' INT TERM HUP PIPE
	[[ $1 == 141 ]] || printf '\n%s: interrupted, cleaning up\n' "$PROGRAM" >&2
	exit "$1"
}

#
# PostgreSQL and the source tree, in the scratch folder
#

# PostgreSQL finds its files relative to where its programs are, so a copy
# that keeps the layout is an installation of its own, and "make install" with
# its pg_config goes into the copy.
pg_private()
{
	local config=${PG_CONFIG:-/usr/lib/postgresql/$PG_MAJOR/bin/pg_config}
	local copy=${1:-$SCRATCH/root} what dir

	[[ -x $config ]] || die "there is no \"$config\"; set PG_CONFIG"
	for what in bindir sharedir pkglibdir; do
		dir=$("$config" "--$what")
		as_user mkdir -p "$copy$dir"
		as_user cp -R --preserve=mode,timestamps,links "$dir/." "$copy$dir"
	done
	for what in includedir includedir-server libdir; do
		dir=$("$config" "--$what")
		if [[ ! -e $copy$dir ]]; then
			as_user mkdir -p "$(dirname "$copy$dir")"
			as_user ln -s "$dir" "$copy$dir"
		fi
	done

	BINDIR=$copy$("$config" --bindir)
	PG_CONFIG=$BINDIR/pg_config
	PKGLIBDIR=$(as_user "$PG_CONFIG" --pkglibdir) ||
		die "programs in $SCRATCH cannot be run; set TMPDIR to a folder that is not mounted noexec"
	[[ $PKGLIBDIR == "$copy"/* ]] ||
		die "the copy of PostgreSQL in $copy does not find its own files"
	set_environment
}

# A copy of the source tree, as it is now, without what a build has left.
copy_tree()
{
	as_user mkdir -p "$1"
	{
		tar -C "$ROOT" --exclude=./.git --exclude='*.o' --exclude='*.so' \
			--exclude='*.bc' --exclude=node_modules --exclude=./results \
			--exclude=tmp_check -cf - . || [[ $? -eq 1 ]]
	} | as_user tar -C "$1" --no-same-owner -xf -
}

# A library that makes the sanitizers' runtime start first, in a server that
# preloads both.  Started by a malloc() of libp11-kit's within newlocale(), it
# looks up a message and thereby spoils the lock that newlocale() holds, and the
# next user of the lock waits for ever.  The runtime for undefined behaviour
# starts at its first report, when the server has overwritten its environment
# for its title, so it gets its options from a function.
first_library()
{
	local file=$1 options=$2

	cat >"$SCRATCH/tmp/first.c" <<-END
		#include <stdlib.h>
		__attribute__((constructor)) static void first(void) { free(malloc(1)); }
		const char *__ubsan_default_options(void) { return "$options"; }
	END
	run gcc -shared -fPIC -O0 -fno-builtin -Wl,-z,initfirst \
		-o "$file" "$SCRATCH/tmp/first.c"
}

# A throwaway cluster $SCRATCH/NAME on a unix socket of its own; further
# arguments are lines of postgresql.conf.  Sets PGHOST for what is run next.
cluster_start()
{
	local name=$1 dir=$SCRATCH/$1

	shift
	run initdb -D "$dir" -U postgres -A trust -N --locale=C -E UTF8 \
		>"$SCRATCH/log/$name.initdb" 2>&1 || {
		cat "$SCRATCH/log/$name.initdb" >&2
		return 1
	}
	printf '%s\n' "listen_addresses = ''" \
		"unix_socket_directories = '$dir'" "fsync = off" \
		"log_line_prefix = '%m [%p] %b '" "$@" >>"$dir/postgresql.conf"
	set_environment "PGHOST=$dir" PGUSER=postgres PGDATABASE=postgres
	run pg_ctl -D "$dir" -l "$SCRATCH/log/$name.log" -w -s start || {
		tail -n 30 "$SCRATCH/log/$name.log" >&2
		return 1
	}
}

cluster_stop()
{
	run pg_ctl -D "$SCRATCH/$1" -w -s -m fast stop
}

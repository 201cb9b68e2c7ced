/*-------------------------------------------------------------------------
 *
 * bare.c
 *	  How many pushes a second libcurl can send when it does nothing else.
 *
 * This is the yardstick of the benchmark: one thread, one libcurl multi handle
 * driven by its socket callbacks on an epoll set, a fixed number of reused easy
 * handles, and a distinct single-account body for every request.  There is no
 * database, no queue and no journal, so the figure is what the transport and
 * the peer allow at that number of requests in flight.
 *
 * A request that the transport fails is sent again, so that a peer that
 * retires a connection does not end the measurement; such requests are counted
 * apart ("resent").
 *
 * IDENTIFICATION
 *	  test/bench/bare.c
 *
 *-------------------------------------------------------------------------
 */
#include <curl/curl.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "usersig.h"

#define BARE_MAX_IN_FLIGHT		10000
#define BARE_MAX_EVENTS			64
#define BARE_MAX_RESENT			1000
#define BARE_BODY_SIZE			1024
#define BARE_URL_SIZE			4096
#define BARE_ANSWER_SIZE		4096
#define BARE_REQUEST_TIMEOUT	20L
#define BARE_SIG_LIFETIME		86400

/*
 * One of the requests in flight.  The easy handle and the buffers are used
 * again for the next request.
 */
typedef struct Slot
{
	CURL	   *easy;
	uint64_t	number;			/* which request it carries */
	size_t		answer_len;
	char		url[BARE_URL_SIZE];
	char		body[BARE_BODY_SIZE];
	char		answer[BARE_ANSWER_SIZE];
} Slot;

/* What was asked for on the command line */
static const char *host = "localhost";
static int	port = 0;
static const char *ca_file = NULL;
static uint32_t sdkappid = 88888888;
static const char *identifier = "administrator";
static const char *key = NULL;
static const char *usersig = NULL;
static const char *prefix = "bare";
static uint64_t total = 20000;
static int	in_flight = 100;
static int	connections = 0;
static bool http1 = false;

/* What has happened so far */
static uint64_t next_number = 0;
static uint64_t finished = 0;
static uint64_t accepted = 0;
static uint64_t refused = 0;
static uint64_t resent = 0;
static uint64_t connects = 0;
static long timeout_ms = -1;
static uint32_t random_start;
static int	epoll_fd;

static char usersig_made[USERSIG_MAX_LEN];

/*
 * Print a message and leave
 */
static void
die(const char *what, const char *detail)
{
	fprintf(stderr, "bare: %s%s%s\n", what, detail ? ": " : "",
			detail ? detail : "");
	exit(1);
}

/*
 * Seconds on the monotonic clock
 */
static double
now_seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/*
 * Seconds of processor time that this process has used
 */
static double
cpu_seconds(void)
{
	struct rusage ru;

	getrusage(RUSAGE_SELF, &ru);
	return ru.ru_utime.tv_sec + ru.ru_stime.tv_sec +
		(ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) / 1e6;
}

/*
 * A MsgRandom that no other request of this run has: an odd factor is a
 * bijection of the 32-bit numbers.
 */
static uint32_t
msg_random(uint64_t number)
{
	return (uint32_t) number * UINT32_C(2654435761) + random_start;
}

/*
 * libcurl tells which sockets it wants watched
 */
static int
socket_changed(CURL *easy, curl_socket_t fd, int what, void *arg, void *known)
{
	CURLM	   *multi = arg;
	struct epoll_event ev = {0};

	(void) easy;

	if (what == CURL_POLL_REMOVE)
	{
		epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
		curl_multi_assign(multi, fd, NULL);
		return 0;
	}

	ev.events = (what & CURL_POLL_IN ? EPOLLIN : 0) |
		(what & CURL_POLL_OUT ? EPOLLOUT : 0);
	ev.data.fd = fd;
	if (epoll_ctl(epoll_fd, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &ev) < 0)
		die("could not watch a socket", strerror(errno));
	curl_multi_assign(multi, fd, multi);
	return 0;
}

/*
 * libcurl tells when it wants to be called next
 */
static int
timer_changed(CURLM *multi, long ms, void *arg)
{
	(void) multi;
	(void) arg;

	timeout_ms = ms;
	return 0;
}

/*
 * Keep the start of an answer
 */
static size_t
take_answer(char *data, size_t size, size_t count, void *arg)
{
	Slot	   *slot = arg;
	size_t		len = size * count;
	size_t		room = sizeof(slot->answer) - 1 - slot->answer_len;

	if (room > len)
		room = len;
	memcpy(slot->answer + slot->answer_len, data, room);
	slot->answer_len += room;
	return len;
}

/*
 * Does the answer say ErrorCode 0?
 */
static bool
answer_is_ok(Slot *slot)
{
	static const char name[] = "\"ErrorCode\"";
	const char *p;

	slot->answer[slot->answer_len] = '\0';
	p = strstr(slot->answer, name);
	if (p == NULL)
		return false;
	p += sizeof(name) - 1;
	p += strspn(p, " \t\r\n:");
	return p[0] == '0' && strchr(",} \r\n\t", p[1]) != NULL;
}

/*
 * Write the request of a slot's number and hand it to libcurl
 */
static void
send_slot(CURLM *multi, Slot *slot)
{
	uint32_t	random = msg_random(slot->number);
	int			len;

	snprintf(slot->url, sizeof(slot->url),
			 "https://%s:%d/v4/timpush/batch?usersig=%s&identifier=%s"
			 "&sdkappid=%" PRIu32 "&random=%" PRIu32 "&contenttype=json",
			 host, port, usersig, identifier, sdkappid, random);
	len = snprintf(slot->body, sizeof(slot->body),
				   "{\"From_Account\":\"%s\",\"To_Account\":[\"%s_%" PRIu64 "\"],"
				   "\"MsgRandom\":%" PRIu32 ",\"OfflinePushInfo\":{\"PushFlag\":0,"
				   "\"Title\":\"Order %" PRIu64 "\",\"Desc\":\"Your order %" PRIu64
				   " has left our warehouse.\"}}",
				   identifier, prefix, slot->number, random,
				   slot->number, slot->number);
	slot->answer_len = 0;

	curl_easy_setopt(slot->easy, CURLOPT_URL, slot->url);
	curl_easy_setopt(slot->easy, CURLOPT_POSTFIELDS, slot->body);
	curl_easy_setopt(slot->easy, CURLOPT_POSTFIELDSIZE, (long) len);
	if (curl_multi_add_handle(multi, slot->easy) != CURLM_OK)
		die("could not add a request", NULL);
}

/*
 * Set what is the same for every request of a slot
 */
static void
prepare_slot(Slot *slot, struct curl_slist *headers)
{
	CURL	   *easy = curl_easy_init();

	if (easy == NULL)
		die("out of memory", NULL);
	slot->easy = easy;

	curl_easy_setopt(easy, CURLOPT_PRIVATE, slot);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take_answer);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, slot);
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(easy, CURLOPT_POST, 1L);
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(easy, CURLOPT_NOPROXY, "*");
	curl_easy_setopt(easy, CURLOPT_TIMEOUT, BARE_REQUEST_TIMEOUT);
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "https");
	if (ca_file)
	{
		curl_easy_setopt(easy, CURLOPT_CAINFO, ca_file);
		curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
	}
	if (http1)
		curl_easy_setopt(easy, CURLOPT_HTTP_VERSION,
						 (long) CURL_HTTP_VERSION_1_1);
	else
	{
		curl_easy_setopt(easy, CURLOPT_HTTP_VERSION,
						 (long) CURL_HTTP_VERSION_2TLS);
		curl_easy_setopt(easy, CURLOPT_PIPEWAIT, 1L);
	}
}

/*
 * Note one finished transfer and put the next request on its slot
 */
static void
finish_slot(CURLM *multi, CURLMsg *msg)
{
	Slot	   *slot;
	CURLcode	code = msg->data.result;
	long		opened = 0;

	curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, (char **) &slot);
	curl_easy_getinfo(msg->easy_handle, CURLINFO_NUM_CONNECTS, &opened);
	connects += opened;
	curl_multi_remove_handle(multi, slot->easy);

	if (code != CURLE_OK)
	{
		if (++resent > BARE_MAX_RESENT)
			die("too many requests failed", curl_easy_strerror(code));
		send_slot(multi, slot);
		return;
	}

	if (answer_is_ok(slot))
		accepted++;
	else if (refused++ == 0)
		fprintf(stderr, "bare: first refusal: %.200s\n", slot->answer);
	finished++;

	if (next_number < total)
	{
		slot->number = next_number++;
		send_slot(multi, slot);
	}
}

/*
 * Drive libcurl until every request has its answer
 */
static void
run(CURLM *multi)
{
	int			running;

	curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running);
	while (finished < total)
	{
		struct epoll_event events[BARE_MAX_EVENTS];
		CURLMsg    *msg;
		int			left;
		int			n;

		n = epoll_wait(epoll_fd, events, BARE_MAX_EVENTS,
					   timeout_ms < 0 || timeout_ms > 1000 ? 1000 : (int) timeout_ms);
		if (n < 0 && errno != EINTR)
			die("could not wait", strerror(errno));

		for (int i = 0; i < n; i++)
		{
			int			what = 0;

			if (events[i].events & EPOLLIN)
				what |= CURL_CSELECT_IN;
			if (events[i].events & EPOLLOUT)
				what |= CURL_CSELECT_OUT;
			if (events[i].events & (EPOLLERR | EPOLLHUP))
				what |= CURL_CSELECT_ERR;
			curl_multi_socket_action(multi, events[i].data.fd, what, &running);
		}
		if (n <= 0)
			curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running);

		while ((msg = curl_multi_info_read(multi, &left)) != NULL)
		{
			if (msg->msg == CURLMSG_DONE)
				finish_slot(multi, msg);
		}
	}
}

/*
 * Say how to call this program
 */
static void
usage(void)
{
	puts("Sends distinct single-account pushes as fast as libcurl can.\n"
		 "\n"
		 "Usage: bare --port PORT --ca FILE {--key TEXT | --usersig TEXT} [OPTION]...\n"
		 "\n"
		 "  --host NAME         host name (localhost)\n"
		 "  --port PORT         port\n"
		 "  --ca FILE           certificates to trust\n"
		 "  --sdkappid NUMBER   app (88888888)\n"
		 "  --identifier NAME   admin account (administrator)\n"
		 "  --key TEXT          secret key, to make a UserSig from\n"
		 "  --usersig TEXT      ready-made UserSig\n"
		 "  --requests N        how many requests to send (20000)\n"
		 "  --in-flight N       how many may be open at a time (100)\n"
		 "  --connections N     connections (2; with --http1 as many as in flight)\n"
		 "  --prefix TEXT       how the account names start (bare)\n"
		 "  --http1             HTTP/1.1 with keep-alive instead of HTTP/2");
}

/*
 * Read a number within bounds
 */
static uint64_t
number_arg(const char *name, const char *text, uint64_t min, uint64_t max)
{
	char	   *end;
	unsigned long long value;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno != 0 || *text == '-' || end == text || *end != '\0' ||
		value < min || value > max)
		die("not a usable number", name);
	return value;
}

/*
 * Read the command line
 */
static void
read_arguments(int argc, char **argv)
{
	static const struct option options[] = {
		{"host", required_argument, NULL, 'h'},
		{"port", required_argument, NULL, 'p'},
		{"ca", required_argument, NULL, 'c'},
		{"sdkappid", required_argument, NULL, 'a'},
		{"identifier", required_argument, NULL, 'i'},
		{"key", required_argument, NULL, 'k'},
		{"usersig", required_argument, NULL, 'u'},
		{"requests", required_argument, NULL, 'n'},
		{"in-flight", required_argument, NULL, 'f'},
		{"connections", required_argument, NULL, 'm'},
		{"prefix", required_argument, NULL, 'x'},
		{"http1", no_argument, NULL, '1'},
		{"help", no_argument, NULL, '?'},
		{NULL, 0, NULL, 0}
	};
	int			c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		switch (c)
		{
			case 'h':
				host = optarg;
				break;
			case 'p':
				port = number_arg("--port", optarg, 1, 65535);
				break;
			case 'c':
				ca_file = optarg;
				break;
			case 'a':
				sdkappid = number_arg("--sdkappid", optarg, 1, UINT32_MAX);
				break;
			case 'i':
				identifier = optarg;
				break;
			case 'k':
				key = optarg;
				break;
			case 'u':
				usersig = optarg;
				break;
			case 'n':
				total = number_arg("--requests", optarg, 1, UINT32_MAX);
				break;
			case 'f':
				in_flight = number_arg("--in-flight", optarg, 1, BARE_MAX_IN_FLIGHT);
				break;
			case 'm':
				connections = number_arg("--connections", optarg, 1, BARE_MAX_IN_FLIGHT);
				break;
			case 'x':
				prefix = optarg;
				break;
			case '1':
				http1 = true;
				break;
			default:
				usage();
				exit(optopt == 0 ? 0 : 2);
		}
	}

	if (port == 0)
		die("--port is needed", NULL);
	if ((key == NULL) == (usersig == NULL))
		die("exactly one of --key and --usersig is needed", NULL);
	if (strlen(prefix) > 100 || strlen(identifier) > USERSIG_MAX_IDENTIFIER)
		die("--prefix or --identifier is too long", NULL);
	if (usersig != NULL && strlen(usersig) >= USERSIG_MAX_LEN)
		die("--usersig is too long", NULL);
	if (connections == 0)
		connections = http1 ? in_flight : 2;
}

int
main(int argc, char **argv)
{
	CURLM	   *multi;
	Slot	   *slots;
	struct curl_slist *headers = NULL;
	double		start;
	double		seconds;
	double		cpu;
	uint64_t	opening;

	read_arguments(argc, argv);

	if (key != NULL)
	{
		if (!usersig_make(usersig_made, key, strlen(key), identifier, sdkappid,
						  time(NULL), BARE_SIG_LIFETIME))
			die("could not make a UserSig", NULL);
		usersig = usersig_made;
	}
	random_start = (uint32_t) (now_seconds() * 1e6) ^ ((uint32_t) getpid() << 16);

	curl_global_init(CURL_GLOBAL_DEFAULT);
	multi = curl_multi_init();
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	slots = calloc(in_flight, sizeof(Slot));
	headers = curl_slist_append(headers, "Content-Type: application/json");
	headers = curl_slist_append(headers, "Expect:");
	if (multi == NULL || epoll_fd < 0 || slots == NULL || headers == NULL)
		die("out of memory", NULL);

	curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, socket_changed);
	curl_multi_setopt(multi, CURLMOPT_SOCKETDATA, multi);
	curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, timer_changed);
	curl_multi_setopt(multi, CURLMOPT_MAX_HOST_CONNECTIONS, (long) connections);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) connections);
	curl_multi_setopt(multi, CURLMOPT_PIPELINING, (long) CURLPIPE_MULTIPLEX);

	opening = total < (uint64_t) in_flight ? total : (uint64_t) in_flight;
	for (uint64_t i = 0; i < opening; i++)
		prepare_slot(&slots[i], headers);

	start = now_seconds();
	cpu = cpu_seconds();
	for (uint64_t i = 0; i < opening; i++)
	{
		slots[i].number = next_number++;
		send_slot(multi, &slots[i]);
	}
	run(multi);
	seconds = now_seconds() - start;
	cpu = cpu_seconds() - cpu;

	printf("requests=%" PRIu64 " ok=%" PRIu64 " refused=%" PRIu64
		   " resent=%" PRIu64 " connections=%" PRIu64
		   " seconds=%.6f cpu_seconds=%.6f per_second=%.1f\n",
		   finished, accepted, refused, resent, connects,
		   seconds, cpu, accepted / seconds);

	for (uint64_t i = 0; i < opening; i++)
		curl_easy_cleanup(slots[i].easy);
	curl_multi_cleanup(multi);
	curl_slist_free_all(headers);
	free(slots);
	curl_global_cleanup();
	return accepted == total ? 0 : 1;
}

/*-------------------------------------------------------------------------
 *
 * test_response.c
 *	  From transfers to outcomes: documented, refused, broken and hostile.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres_fe.h"

#include <limits.h>

#include "lib/stringinfo.h"

#include "palloc.h"
#include "response.h"
#include "tap.h"

#define TASK	"batch_667015d4_537529d8_2000005e80aa873_d03ac87_56f5e750"
#define FFFD	"\xEF\xBF\xBD"

#define USERSIG \
	"eAEBqwBU-3siVExTLnZlciI6IjIuMCIsIlRMUy5pZGVudGlmaWVyIjoieGlhb2p1biIs" \
	"IlRMUy5zZGthcHBpZCI6MTQwMDAwMDAwMCwiVExTLmV4cGlyZSI6MTU1NTIwMDAsIlRM" \
	"cCtCND0ifa3HMfI_"

/*
 * Judge bytes that came with a status.  They are handed over in a block of
 * just their length, so that a read beyond it is seen.
 */
static Outcome
judge_bytes(int http_status, const char *bytes, size_t len)
{
	Transfer	transfer = {TRANSFER_ANSWERED, http_status, -1, NULL, NULL, 0};
	Outcome		outcome;
	char	   *exact = malloc(len);

	memcpy(exact, bytes, len);
	transfer.body = exact;
	transfer.body_len = len;
	response_outcome(&transfer, &outcome);
	free(exact);
	return outcome;
}

static Outcome
judge(int http_status, const char *body)
{
	return judge_bytes(http_status, body, strlen(body));
}

/* The class that a body gets with status 200. */
static void
is_class(const char *body, OutcomeClass class, const char *name)
{
	is(outcome_class_name(judge(200, body).class), outcome_class_name(class),
	   name);
}

/* A body that must not be taken for an answer of the API. */
static void
is_unreadable(const char *body, const char *name)
{
	Outcome		outcome = judge(200, body);

	ok(outcome.class == OUTCOME_UNKNOWN && !outcome.has_code &&
	   outcome.error_code == 0 && outcome.nerrors == 0 &&
	   outcome.task_id == NULL &&
	   strncmp(outcome.error_info, "unreadable answer (HTTP 200): ", 30) == 0,
	   "unreadable: %s", name);
}

/* The answers that Tencent document 1047/67553 shows. */
static void
check_documented(void)
{
	Outcome		o;

	o = judge(200, "{\"ActionStatus\": \"OK\",\"ErrorInfo\": \"\","
			  "\"ErrorCode\": 0,\"TaskId\": \"" TASK "\"}");
	is_int(o.class, OUTCOME_SENT, "documented success: sent");
	ok(o.has_code && o.error_code == 0, "documented success: its code");
	is(o.task_id, TASK, "documented success: TaskId");
	is(o.error_info, "", "documented success: no text");
	ok(o.nerrors == 0 && o.errors == NULL, "documented success: no errors");
	ok(o.http_status == 200 && o.retry_after == -1, "documented success: HTTP");

	o = judge(200, "{\"ActionStatus\": \"FAIL\",\"ErrorInfo\": "
			  "\"Invalid format of MsgRandom\",\"ErrorCode\": 90001,"
			  "\"TaskId\": \"\"}");
	is_int(o.class, OUTCOME_BAD_REQUEST, "documented failure: bad request");
	is_int(o.error_code, 90001, "documented failure: its code");
	is(o.error_info, "Invalid format of MsgRandom", "documented failure: text");
	is(o.task_id, NULL, "documented failure: an empty TaskId is none");

	o = judge(200, "{\"ActionStatus\": \"OK\",\"ErrorInfo\": \"\","
			  "\"ErrorCode\": 0,\"TaskId\": \"" TASK "\",\"ErrorList\": "
			  "[{\"ErrorCode\": 70107,\"To_Account\": \"user\"}]}");
	is_int(o.class, OUTCOME_PARTIAL, "documented partial failure: partial");
	is(o.task_id, TASK, "documented partial failure: TaskId");
	if (is_int(o.nerrors, 1, "documented partial failure: one account"))
	{
		is(o.errors[0].account, "user", "documented partial failure: account");
		is_int(o.errors[0].code, 70107, "documented partial failure: code");
		is(o.errors[0].info, "", "documented partial failure: no text");
	}

	/* as the page prints it, with comments, it is no JSON */
	is_unreadable("{\"ErrorCode\": 0, // fine\n\"TaskId\": \"\"}", "comments");
	is_class("{\"ErrorCode\":0,\"ActionStatus\":\"OK\",\"ErrorList\":[]}",
			 OUTCOME_SENT, "an empty ErrorList: sent");
	is_class("{\"ErrorCode\":0,\"ActionStatus\":\"OK\",\"ErrorList\":null}",
			 OUTCOME_SENT, "a null ErrorList: sent");
	is_class("{\"ErrorCode\":0}", OUTCOME_SENT, "the code alone decides");
}

/* Every code that the policy names, class by class. */
static const int throttled[] = {60007, 60011, 60018, 60019, 90024, 60028, 0};
static const int resign[] = {70001, 70003, 60004, 60005, 60025, 0};
static const int server_stop[] = {
	60006, 60009, 60010, 60012, 60016, 60017, 60020, 60021, 60026, 60027,
	70009, 70013, 70014, 70016, 70020, 70050, 70051, 70398, 72000, 72002,
	80005, 90009, 90045, 0
};
static const int transient[] = {
	60014, 70169, 70500, 90992, 90994, 90995, 91000, 80003, 0
};
static const int unknown[] = {60008, 60013, 0};
static const int bad_request[] = {
	60002, 60003, 60015, 70107, 90048, 70402, 80001, 80002, 80004, 90001,
	90003, 90005, 90008, 90011, 90012, 90018, 90026, 90028, 90029, 90043,
	90044, 90055, 90057, 93000, 0
};

static void
check_codes_of(const int *codes, OutcomeClass class)
{
	for (; *codes != 0; codes++)
	{
		char		body[128];
		Outcome		o;

		snprintf(body, sizeof(body), "{\"ActionStatus\":\"FAIL\","
				 "\"ErrorInfo\":\"why\",\"ErrorCode\":%d}", *codes);
		o = judge(200, body);
		ok(o.class == class && response_code_class(*codes) == class &&
		   response_code_known(*codes) && o.has_code &&
		   o.error_code == *codes && strcmp(o.error_info, "why") == 0,
		   "%d is %s", *codes, outcome_class_name(class));
	}
}

static void
check_codes(void)
{
	check_codes_of(throttled, OUTCOME_THROTTLED);
	check_codes_of(resign, OUTCOME_RESIGN);
	check_codes_of(server_stop, OUTCOME_SERVER_STOP);
	check_codes_of(transient, OUTCOME_TRANSIENT);
	check_codes_of(unknown, OUTCOME_UNKNOWN);
	check_codes_of(bad_request, OUTCOME_BAD_REQUEST);

	is_int(response_code_class(0), OUTCOME_SENT, "0 is sent");
	is_int(response_code_class(99999), OUTCOME_TRANSIENT,
		   "a code that nobody knows is transient");
	is_int(response_code_class(-1), OUTCOME_TRANSIENT, "so is a negative one");
	ok(!response_code_known(99999) && !response_code_known(0) &&
	   !response_code_known(-1), "neither is known");

	is_class("{\"ErrorCode\":0,\"ActionStatus\":\"FAIL\"}", OUTCOME_TRANSIENT,
			 "FAIL with code 0 is no success");
	is_class("{\"ErrorCode\":0,\"ActionStatus\":\"MAYBE\"}", OUTCOME_UNKNOWN,
			 "any other status with code 0 is doubt");
	is_class("{\"ErrorCode\":91000,\"ActionStatus\":\"OK\"}", OUTCOME_TRANSIENT,
			 "OK with a code is no success");
}

static void
check_account_classes(void)
{
	static const int final[] = {70107, 90048, 70051, 60015, 90003, 80001, 0};
	static const int again[] = {91000, 70500, 90011, 90018, 70009, 70001, 0};

	for (int i = 0; final[i] != 0; i++)
		ok(response_account_class(final[i]) == OUTCOME_BAD_REQUEST,
		   "%d of an account is final", final[i]);
	for (int i = 0; again[i] != 0; i++)
		ok(response_account_class(again[i]) == OUTCOME_TRANSIENT,
		   "%d of an account is transient", again[i]);
	is_int(response_account_class(60008), OUTCOME_UNKNOWN,
		   "60008 of an account is unknown");
	is_int(response_account_class(60007), OUTCOME_THROTTLED,
		   "60007 of an account is throttled");
	is_int(response_account_class(12345), OUTCOME_TRANSIENT,
		   "an unknown code of an account is transient");
	is_int(response_account_class(-1), OUTCOME_TRANSIENT,
		   "an unreadable code of an account is transient");

	for (int code = -10; code < 100000; code++)
	{
		OutcomeClass class = response_account_class(code);

		if (class != OUTCOME_BAD_REQUEST && class != OUTCOME_TRANSIENT &&
			class != OUTCOME_THROTTLED && class != OUTCOME_UNKNOWN)
			ok(false, "class of %d for an account", code);
	}
}

/* Answers that are none of the API's are judged by their status. */
static void
check_statuses(void)
{
	static const struct
	{
		int			status;
		OutcomeClass class;
	}			cases[] = {
		{0, OUTCOME_UNKNOWN}, {100, OUTCOME_UNKNOWN}, {200, OUTCOME_UNKNOWN},
		{204, OUTCOME_UNKNOWN}, {301, OUTCOME_SERVER_STOP},
		{302, OUTCOME_SERVER_STOP}, {307, OUTCOME_SERVER_STOP},
		{400, OUTCOME_SERVER_STOP}, {403, OUTCOME_SERVER_STOP},
		{404, OUTCOME_SERVER_STOP}, {413, OUTCOME_SERVER_STOP},
		{429, OUTCOME_THROTTLED}, {499, OUTCOME_SERVER_STOP},
		{500, OUTCOME_UNKNOWN}, {502, OUTCOME_UNKNOWN},
		{503, OUTCOME_THROTTLED}, {504, OUTCOME_UNKNOWN},
		{599, OUTCOME_UNKNOWN}, {999, OUTCOME_UNKNOWN}, {-1, OUTCOME_UNKNOWN}
	};

	for (int i = 0; i < (int) lengthof(cases); i++)
	{
		int			status = cases[i].status;
		char		start[64];
		Outcome		o;

		o = judge(status, "<html>no</html>");
		snprintf(start, sizeof(start), "unreadable answer (HTTP %d): <html>",
				 status);
		ok(o.class == cases[i].class && !o.has_code &&
		   o.http_status == status &&
		   strncmp(o.error_info, start, strlen(start)) == 0,
		   "HTTP %d with a page is %s", status,
		   outcome_class_name(cases[i].class));
		o = judge(status, "");
		snprintf(start, sizeof(start),
				 "unreadable answer (HTTP %d): empty body", status);
		ok(o.class == cases[i].class && !o.has_code &&
		   strcmp(o.error_info, start) == 0,
		   "HTTP %d with nothing is %s", status,
		   outcome_class_name(cases[i].class));
		o = judge(status, "{\"ErrorCode\":70001,\"ErrorInfo\":\"x\"}");
		ok(o.class == OUTCOME_RESIGN && o.has_code && o.http_status == status,
		   "HTTP %d with an API body is judged by it", status);
	}
}

static void
check_transfers(void)
{
	Transfer	throttle = {TRANSFER_ANSWERED, 429, 7, NULL, NULL, 0};
	Transfer	t = {TRANSFER_NOT_SENT, 0, 7, NULL, "{\"ErrorCode\":0}", 15};
	Outcome		o;
	char		longest[3000];

	t.error = "Could not resolve\nhost\xff";
	response_outcome(&t, &o);
	is_int(o.class, OUTCOME_NOT_SENT, "nothing left: not sent");
	is(o.error_info, "Could not resolve host" FFFD, "libcurl's text, readable");
	ok(!o.has_code && o.retry_after == -1 && o.task_id == NULL,
	   "a body that belongs to no answer is not read");

	t.end = TRANSFER_IN_DOUBT;
	t.http_status = 200;
	t.error = NULL;
	response_outcome(&t, &o);
	is_int(o.class, OUTCOME_UNKNOWN, "broken off: unknown");
	is(o.error_info, "", "no text is an empty text");
	is_int(o.http_status, 200, "a status line may have come");

	memset(longest, 'x', sizeof(longest));
	longest[sizeof(longest) - 1] = '\0';
	t.error = longest;
	response_outcome(&t, &o);
	ok(strlen(o.error_info) <= RESPONSE_MAX_TEXT &&
	   strlen(o.error_info) > RESPONSE_MAX_TEXT - 8, "a long text is cut");

	response_outcome(&throttle, &o);
	ok(o.class == OUTCOME_THROTTLED && o.retry_after == 7,
	   "Retry-After is honoured");
	t = throttle;
	t.retry_after = INT_MAX;
	response_outcome(&t, &o);
	is_int(o.retry_after, RETRY_AFTER_MAX, "up to a bound");
	t.retry_after = 0;
	response_outcome(&t, &o);
	is_int(o.retry_after, 0, "0 is a time too");
	t.retry_after = -5;
	response_outcome(&t, &o);
	is_int(o.retry_after, -1, "less is none");
}

static void
check_unreadable(void)
{
	static const char *const bodies[] = {
		"", " ", "null", "0", "\"ErrorCode\"", "[]", "[{\"ErrorCode\":0}]",
		"{}", "{\"errorcode\":0}", "{\"ErrorCode\":\"0\"}",
		"{\"ErrorCode\":null}", "{\"ErrorCode\":true}", "{\"ErrorCode\":{}}",
		"{\"ErrorCode\":[0]}", "{\"ErrorCode\":{\"ErrorCode\":0}}",
		"{\"ErrorCode\":7.5}", "{\"ErrorCode\":0.0}", "{\"ErrorCode\":1e3}",
		"{\"ErrorCode\":0e0}", "{\"ErrorCode\":2147483648}",
		"{\"ErrorCode\":-2147483649}", "{\"ErrorCode\":4294967296}",
		"{\"ErrorCode\":18446744073709551616}",
		"{\"ErrorCode\":99999999999999999999999999999999999999999999999999}",
		"{\"ErrorCode\":1234567890123456789012345678901234567890}",
		"{\"ErrorCode\":1e400}", "{\"ErrorCode\":-1e400}",
		"{\"ErrorCode\":1e-400}",
		"{\"ErrorCode\":00}", "{\"ErrorCode\":+1}", "{\"ErrorCode\":0x0}",
		"{\"ErrorCode\":NaN}", "{ErrorCode:0}", "{'ErrorCode':0}",
		"{\"ErrorCode\":0", "{\"ErrorCode\":0}}", "{\"ErrorCode\":0}{}",
		"{\"ErrorCode\":0} trailing", "{\"ErrorCode\":0,}",
		"{\"ErrorCode\":0,\"ErrorInfo\":\"\n\"}", "{\"ErrorCode\":0}\"",
		"{\"ErrorCode\":0,\"a\":\"\\x\"}", "{\"ErrorCode\":0,\"a\":\"\\u12\"}",
		"{\"ErrorCode\":0,\"a\":\"\\u12G4\"}", "{\"ErrorCode\":0,\"a\":\"\\",
		"{\"ErrorCode\":0,\"a\":\"\\u", "{\"ErrorCode\":0,\"a\":\"\\ud83d",
		"{\"ErrorCode\":0,\"a\":\"\\\xC3\xA9\"}", "{\"a\":{\"ErrorCode\":0}}",
		"{\"ErrorCode\":0,\"ErrorCode\":\"x\"}", "\xEF\xBB\xBF{\"ErrorCode\":0}",
		"\xFF\xFE{", "<html></html>"
	};
	Outcome		o;

	for (int i = 0; i < (int) lengthof(bodies); i++)
		is_unreadable(bodies[i], *bodies[i] == '\xEF' ? "byte order mark" :
					  strchr(bodies[i], '\n') != NULL ? "line feed" : bodies[i]);

	o = judge_bytes(200, "{\"ErrorCode\":0\0}", 16);
	is(o.error_info, "unreadable answer (HTTP 200): {\"ErrorCode\":0 } "
	   "(NUL byte)", "NUL is refused and shown as a space");
	is_int(o.class, OUTCOME_UNKNOWN, "NUL is refused");
	o = judge_bytes(200, "{\"ErrorCode\":0,\"a\":\"\\\0\"}", 23);
	is_int(o.class, OUTCOME_UNKNOWN, "so is an escaped NUL");
	is(judge(502, "<h1>\x1b[31mBad\r\n\xC3\x28</h1>").error_info,
	   "unreadable answer (HTTP 502): <h1> [31mBad  " FFFD "(</h1> "
	   "(not valid JSON)", "an excerpt is made readable");
}

/* Two fields of one name: the last one counts. */
static void
check_duplicates(void)
{
	Outcome		o;

	o = judge(200, "{\"ErrorCode\":\"x\",\"ErrorCode\":90001,\"ErrorInfo\":\"a\","
			  "\"ErrorInfo\":\"b\",\"ActionStatus\":\"OK\","
			  "\"ActionStatus\":\"FAIL\",\"TaskId\":\"t\",\"TaskId\":null}");
	is_int(o.error_code, 90001, "the last ErrorCode");
	is(o.error_info, "b", "the last ErrorInfo");
	is(o.task_id, NULL, "the last TaskId, of a wrong type");
	o = judge(200, "{\"ErrorCode\":0,\"ErrorList\":[{\"To_Account\":\"a\","
			  "\"ErrorCode\":1}],\"ErrorList\":[{\"To_Account\":\"b\","
			  "\"To_Account\":\"c\",\"ErrorCode\":2,\"ErrorCode\":3}]}");
	ok(o.nerrors == 1 && strcmp(o.errors[0].account, "c") == 0 &&
	   o.errors[0].code == 3, "the last ErrorList, and within it");
	is_class("{\"ErrorCode\":0,\"ErrorList\":[{\"To_Account\":\"a\"}],"
			 "\"ErrorList\":\"\"}", OUTCOME_SENT, "a last ErrorList of no type");
}

static void
check_error_lists(void)
{
	Outcome		o;

	o = judge(200, "{\"ErrorList\":[{\"To_Account\":\"a\",\"ErrorCode\":70107,"
			  "\"ErrorInfo\":\"gone\",\"More\":{\"To_Account\":\"x\"}},"
			  "{\"ErrorCode\":5},{\"To_Account\":7,\"ErrorCode\":6},"
			  "{\"To_Account\":\"b\",\"ErrorCode\":\"7\",\"ErrorInfo\":8},"
			  "{\"To_Account\":\"fine\",\"ErrorCode\":0},"
			  "\"c\",null,[],[{\"To_Account\":\"d\"}],{}],\"ErrorCode\":0}");
	is_int(o.class, OUTCOME_PARTIAL, "a mixed list: partial");
	if (!is_int(o.nerrors, 9, "a mixed list: all but the one with code 0"))
		return;
	is(o.errors[0].account, "a", "an account");
	is(o.errors[0].info, "gone", "its text");
	is_int(o.errors[0].code, 70107, "its code");
	is(o.errors[1].account, "", "To_Account missing");
	is_int(o.errors[1].code, 5, "but a code");
	is(o.errors[2].account, "", "To_Account is a number");
	is(o.errors[3].account, "b", "ErrorCode is no number");
	is_int(o.errors[3].code, -1, "so it has none");
	is(o.errors[3].info, "", "ErrorInfo is no string");
	for (int i = 4; i < 9; i++)
		ok(o.errors[i].account[0] == '\0' && o.errors[i].code == -1,
		   "element %d is no account", i);

	is_class("{\"ErrorCode\":0,\"ErrorList\":{\"To_Account\":\"a\"}}",
			 OUTCOME_SENT, "an ErrorList that is no list");
	is_class("{\"ErrorCode\":0,\"Other\":[{\"To_Account\":\"a\"}]}",
			 OUTCOME_SENT, "another list");
	is_class("{\"ErrorCode\":0,\"ErrorList\":[{\"To_Account\":\"a\","
			 "\"ErrorCode\":0}]}", OUTCOME_SENT, "a list of successes: sent");
	o = judge(200, "{\"ErrorCode\":90001,\"ErrorList\":[{\"To_Account\":\"a\","
			  "\"ErrorCode\":90048}]}");
	ok(o.class == OUTCOME_BAD_REQUEST && o.nerrors == 1,
	   "a refusal keeps its list");
}

static void
check_texts(void)
{
	static const struct
	{
		const char *json;
		const char *text;
	}			cases[] = {
		{"plain", "plain"},
		{"\\u0041\\u00e9\\u7ba1", "A\xC3\xA9\xE7\xAE\xA1"},
		{"\\u00E9", "\xC3\xA9"},
		{"\\ud83d\\ude00!", "\xF0\x9F\x98\x80!"},
		{"\\uDBFF\\uDFFF", "\xF4\x8F\xBF\xBF"},
		{"\\ud83d", FFFD}, {"\\ude00", FFFD}, {"\\ude00\\ud83d", FFFD FFFD},
		{"\\ud83d\\u0041", FFFD "A"}, {"\\ud83d\\ud83d\\ude00",
		FFFD "\xF0\x9F\x98\x80"}, {"\\ud83d\\n", FFFD "\n"},
		{"\\u0000", FFFD}, {"a\\u0000b", "a" FFFD "b"},
		{"\\u0022\\u005c\\u005cu00e9", "\"\\\\u00e9"},
		{"\\\\u00e9", "\\u00e9"}, {"\\\\\\u00e9", "\\\xC3\xA9"},
		{"\\\"{[\\\"", "\"{[\""}, {"\\/\\b\\f\\r\\t", "/\b\f\r\t"},
		{"\\uFFFE\\uffff", "\xEF\xBF\xBE\xEF\xBF\xBF"},
		{"\xE7\xAE\xA1", "\xE7\xAE\xA1"},
		{"\xC3\x28", FFFD "("}, {"\xC0\x80", FFFD FFFD},
		{"\xED\xA0\x80", FFFD FFFD FFFD}, {"\xE7\xAE", FFFD FFFD},
		{"\xF8\x88\x80\x80\x80", FFFD FFFD FFFD FFFD FFFD},
		{"\xF4\x90\x80\x80", FFFD FFFD FFFD FFFD}, {"\xFF", FFFD},
		{"usersig=" USERSIG "&x", "usersig=***&x"},
		{"\\\"usersig\\\":\\\"" USERSIG "\\\"", "\"usersig\":\"***\""},
		{"eAE too short, eJ too", "eAE too short, eJ too"}
	};

	for (int i = 0; i < (int) lengthof(cases); i++)
	{
		char		body[1024];
		Outcome		o;

		snprintf(body, sizeof(body), "{\"ErrorInfo\":\"%s\",\"ErrorCode\":1}",
				 cases[i].json);
		o = judge(200, body);
		ok(o.has_code && strcmp(o.error_info, cases[i].text) == 0,
		   "text %d is read", i);
	}

	is(judge(200, "{\"ErrorCode\":0,\"TaskId\":\"" USERSIG "\"}").task_id,
	   "***", "no UserSig in a TaskId");
	is(judge(400, "GET /x?usersig=" USERSIG "&a=1 refused").error_info,
	   "unreadable answer (HTTP 400): GET /x?usersig=***&a=1 refused "
	   "(not valid JSON)", "no UserSig in an excerpt");
}

/* Texts are cut between characters, at the bound or just below. */
static void
check_cuts(void)
{
	for (int lead = 0; lead < 4; lead++)
	{
		StringInfoData buf;
		Outcome		o;
		size_t		len;

		initStringInfo(&buf);
		appendStringInfoString(&buf, "{\"ErrorCode\":1,\"ErrorInfo\":\"");
		for (int i = 0; i < lead; i++)
			appendStringInfoChar(&buf, 'x');
		for (int i = 0; i < 1000; i++)
			appendStringInfoString(&buf, "\xF0\x9F\x98\x80");
		appendStringInfoString(&buf, "\"}");
		o = judge_bytes(200, buf.data, (size_t) buf.len);
		len = strlen(o.error_info);
		ok(len <= RESPONSE_MAX_TEXT && len > RESPONSE_MAX_TEXT - 4 &&
		   (len - lead) % 4 == 0, "cut between characters (%zu bytes)", len);
		o = judge_bytes(502, buf.data + 28, (size_t) buf.len - 28);
		ok(strstr(o.error_info, FFFD) == NULL &&
		   strstr(o.error_info, "...") != NULL, "so is an excerpt");
	}
}

static void
repeat(StringInfo buf, const char *text, int n)
{
	for (int i = 0; i < n; i++)
		appendStringInfoString(buf, text);
}

static void
check_depth(void)
{
	for (int depth = 1; depth <= 20; depth++)
	{
		StringInfoData buf;
		Outcome		o;

		/* the answer itself is one level */
		initStringInfo(&buf);
		appendStringInfoString(&buf, "{\"ErrorCode\":0,\"a\":");
		repeat(&buf, "[", depth - 1);
		appendStringInfoString(&buf, "\"[[[[[[[[[[[[[[[[[[[[\"");
		repeat(&buf, "]", depth - 1);
		appendStringInfoChar(&buf, '}');
		o = judge_bytes(200, buf.data, (size_t) buf.len);
		ok(o.has_code == (depth <= RESPONSE_MAX_DEPTH), "depth %d", depth);
	}
}

/* So deep that whoever calls himself for each level runs out of stack. */
static void
check_abyss(const char *open, const char *close)
{
	const int	levels = 100 * 1000;
	StringInfoData buf;
	Outcome		o;

	context_reset();
	initStringInfo(&buf);
	appendStringInfoString(&buf, "{\"ErrorCode\":0,\"a\":");
	repeat(&buf, open, levels);
	appendStringInfoChar(&buf, '1');
	repeat(&buf, close, levels);
	appendStringInfoChar(&buf, '}');
	o = judge_bytes(200, buf.data, (size_t) buf.len);
	ok(!o.has_code && strstr(o.error_info, "(nested too deeply)") != NULL,
	   "%d levels of %s are refused", levels, open);
	context_reset();
}

/* A body that is too long is looked at as far as it is quoted. */
static void
check_flood(void)
{
	const size_t size = 100 * 1024 * 1024;
	char	   *body = malloc(size);
	Transfer	transfer = {TRANSFER_ANSWERED, 200, -1, NULL, body, size};
	Outcome		o;

	context_reset();
	memset(body, '[', size);
	response_outcome(&transfer, &o);
	ok(o.class == OUTCOME_UNKNOWN && strstr(o.error_info, "(body too long)") != NULL,
	   "100 MB are refused");
	ok(context_peak() < 8192, "with %zu bytes", context_peak());
	context_reset();
	free(body);
}

/* Bodies far larger than any that the caller lets through. */
static void
check_sizes(void)
{
	static const char *const units[] = {
		"[", "{\"a\":", "1,", "\"\\u00e9\",", "\"x\",", "{},", "\xFF", "\\",
		"{\"To_Account\":\"aaaaaaaaaaaaaaaa\",\"ErrorCode\":70107},", " ", "\""
	};
	const int	size = 10 * 1024 * 1024;
	Outcome		o;

	context_reset();
	for (int i = 0; i < (int) lengthof(units); i++)
	{
		StringInfoData buf;
		char	   *body;
		size_t		len;

		initStringInfo(&buf);
		appendStringInfoString(&buf, "{\"ErrorCode\":0,\"ErrorList\":[");
		repeat(&buf, units[i], size / (int) strlen(units[i]));
		appendStringInfoString(&buf, "0]}");
		len = (size_t) buf.len;
		body = malloc(len);
		memcpy(body, buf.data, len);
		context_reset();
		o = judge_bytes(200, body, len);
		ok(strlen(o.error_info) <= RESPONSE_MAX_TEXT &&
		   o.nerrors <= RESPONSE_MAX_ERRORS &&
		   context_peak() < 8 * (size_t) size &&
		   context_in_use() < 4 * 1024 * 1024,
		   "10 MB of \"%s\": %s, %zu kB at most, %zu kB kept",
		   *units[i] == '\xFF' ? "junk" : units[i],
		   outcome_class_name(o.class), context_peak() / 1024,
		   context_in_use() / 1024);
		free(body);
		context_reset();
	}
}

/*
 * Broken off at any byte, a body is never taken for an answer; with any byte
 * changed it never does harm.
 */
static void
check_truncation(void)
{
	static const char body[] =
	"{\"ActionStatus\":\"OK\",\"ErrorInfo\":\"\\u00e9\\ud83d\\ude00 \xE7\xAE\xA1\","
	"\"ErrorCode\":0,\"TaskId\":\"" TASK "\",\"ErrorList\":[{\"ErrorCode\":"
	"70107,\"To_Account\":\"user\"},{\"To_Account\":\"\\\"\\\\\"}]}";
	size_t		len = sizeof(body) - 1;
	int			readable = 0;

	is_int(judge_bytes(200, body, len).nerrors, 2, "the whole body is read");
	for (size_t i = 0; i < len; i++)
	{
		Outcome		o = judge_bytes(200, body, i);

		if (o.class != OUTCOME_UNKNOWN || o.has_code)
			readable++;
		o = judge_bytes(200, body + i, len - i);
		if (i > 0 && o.has_code)
			readable++;
	}
	is_int(readable, 0, "no part of it is");
	for (size_t i = 0; i < len; i++)
	{
		char		changed[sizeof(body)];

		for (int byte = 0; byte < 256; byte++)
		{
			memcpy(changed, body, sizeof(body));
			changed[i] = (char) byte;
			judge_bytes(200, changed, len);
			context_reset();
		}
	}
	ok(true, "every byte changed to every other");
}

static void
check_names(void)
{
	static const char *const names[] = {
		"sent", "partial", "not-sent", "throttled", "re-sign", "server-stop",
		"transient", "unknown", "bad-request"
	};

	for (int i = 0; i < (int) lengthof(names); i++)
		is(outcome_class_name((OutcomeClass) i), names[i], names[i]);
}

int
main(void)
{
	check_documented();
	check_codes();
	check_account_classes();
	check_statuses();
	check_transfers();
	check_unreadable();
	check_duplicates();
	check_error_lists();
	check_texts();
	check_cuts();
	check_depth();
	check_abyss("[", "]");
	check_abyss("{\"a\":", "}");
	check_abyss("[{\"a\":", "}]");
	check_flood();
	check_sizes();
	check_truncation();
	check_names();
	context_reset();
	return done_testing();
}

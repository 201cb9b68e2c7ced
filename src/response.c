/*-------------------------------------------------------------------------
 *
 * response.c
 *	  What came of a request: the answer's text, its class, the next step.
 *
 * The body is hostile: it may come from a proxy, a captive portal or a peer
 * that broke off.  PostgreSQL's JSON parser reads it, but that parser raises
 * an error for some input (escapes that the database encoding lacks, deep
 * nesting), and an outcome must never be lost to an error.  So one pass of
 * our own comes first and leaves nothing that the parser could raise on; what
 * remains wrong is reported by the parser as a value.
 *
 * Codes and their meaning are those of the endpoint v4/timpush/batch (Tencent
 * documents 1047/67553, 1047/34348 and 1047/74196; 269/108906, 269/1671).
 * The text of ErrorInfo differs between versions and is never looked at.
 *
 * Pure functions: no state, no catalog, no error raised, so nothing to
 * recover after a crash.  Compiles in the backend and, with FRONTEND defined,
 * for the unit tests.
 *
 *-------------------------------------------------------------------------
 */
#ifdef FRONTEND
#include "postgres_fe.h"
#else
#include "postgres.h"
#endif

#include <errno.h>
#include <limits.h>

#include "common/jsonapi.h"
#include "mb/pg_wchar.h"

#include "compat.h"
#include "response.h"

/*
 * The caller bounds what it reads to far less; this only keeps every
 * allocation below under the one gigabyte at which palloc raises an error.
 */
#define BODY_MAX_LEN		(64 * 1024 * 1024)

/* What is quoted of an answer that cannot be read. */
#define EXCERPT_MAX_LEN		512

#define REPLACEMENT			"\xEF\xBF\xBD"	/* U+FFFD */
#define REPLACEMENT_LEN		3

/* "\u1234" */
#define ESCAPE_LEN			6

/* A UserSig in base64 is longer than this, no other word is likely to be. */
#define USERSIG_MIN_LEN		64

typedef struct CodeClass
{
	int			code;
	OutcomeClass class;
} CodeClass;

/* What a code means for a request as a whole. */
static const CodeClass request_codes[] = {
	/* over a frequency limit */
	{60007, OUTCOME_THROTTLED}, /* of this call */
	{60011, OUTCOME_THROTTLED}, /* of all calls of the app */
	{60018, OUTCOME_THROTTLED}, /* too frequent, later */
	{60019, OUTCOME_THROTTLED}, /* too frequent, later */
	{60028, OUTCOME_THROTTLED}, /* a trial's volume of 24 hours, for hours */
	{90024, OUTCOME_THROTTLED}, /* within a second of the last push */

	/* the UserSig: a new one may do, once */
	{60004, OUTCOME_RESIGN},	/* account or signature not accepted */
	{60005, OUTCOME_RESIGN},	/* account or signature not accepted */
	{60025, OUTCOME_RESIGN},	/* a parameter of the URL is wrong */
	{70001, OUTCOME_RESIGN},	/* UserSig expired */
	{70003, OUTCOME_RESIGN},	/* UserSig illegal */

	/* credentials, plan or permission: nothing will pass until mended */
	{60006, OUTCOME_SERVER_STOP},	/* SDKAppID not valid */
	{60009, OUTCOME_SERVER_STOP},	/* no such resource */
	{60010, OUTCOME_SERVER_STOP},	/* identifier is no administrator */
	{60012, OUTCOME_SERVER_STOP},	/* no SDKAppID given */
	{60016, OUTCOME_SERVER_STOP},	/* SDKAppID disabled */
	{60017, OUTCOME_SERVER_STOP},	/* request disabled */
	{60020, OUTCOME_SERVER_STOP},	/* plan expired or in arrears */
	{60021, OUTCOME_SERVER_STOP},	/* address of the caller not allowed */
	{60026, OUTCOME_SERVER_STOP},	/* host of another site than the app */
	{60027, OUTCOME_SERVER_STOP},	/* product without this call */
	{70009, OUTCOME_SERVER_STOP},	/* UserSig of another app's key */
	{70013, OUTCOME_SERVER_STOP},	/* identifier is not the signed one */
	{70014, OUTCOME_SERVER_STOP},	/* SDKAppID is not the signed one */
	{70016, OUTCOME_SERVER_STOP},	/* key unknown in this data centre */
	{70020, OUTCOME_SERVER_STOP},	/* app unknown in this data centre */
	{70050, OUTCOME_SERVER_STOP},	/* signature wrong too many times */
	{70051, OUTCOME_SERVER_STOP},	/* account on the block list */
	{70398, OUTCOME_SERVER_STOP},	/* more accounts than the plan has */
	{72000, OUTCOME_SERVER_STOP},	/* daily users over the free quota */
	{72002, OUTCOME_SERVER_STOP},	/* monthly users over the free quota */
	{80005, OUTCOME_SERVER_STOP},	/* service stopped */
	{90009, OUTCOME_SERVER_STOP},	/* identifier is no administrator */
	{90045, OUTCOME_SERVER_STOP},	/* push is not enabled */

	/* trouble at the other side, refused for certain */
	{60014, OUTCOME_TRANSIENT}, /* account check timed out */
	{70169, OUTCOME_TRANSIENT}, /* timeout */
	{70500, OUTCOME_TRANSIENT}, /* internal error */
	{80003, OUTCOME_TRANSIENT}, /* the customer's own webhook failed */
	{90992, OUTCOME_TRANSIENT}, /* internal error */
	{90994, OUTCOME_TRANSIENT}, /* internal error */
	{90995, OUTCOME_TRANSIENT}, /* internal error */
	{91000, OUTCOME_TRANSIENT}, /* internal error */

	/* the gateway lost sight of its backend */
	{60008, OUTCOME_UNKNOWN},	/* service timed out */
	{60013, OUTCOME_UNKNOWN},	/* backend's reply could not be parsed */

	/* refused for what the request contains */
	{60002, OUTCOME_BAD_REQUEST},	/* HTTP could not be parsed */
	{60003, OUTCOME_BAD_REQUEST},	/* body is no JSON */
	{60015, OUTCOME_BAD_REQUEST},	/* an account is no string */
	{70107, OUTCOME_BAD_REQUEST},	/* account does not exist */
	{70402, OUTCOME_BAD_REQUEST},	/* bad parameter */
	{80001, OUTCOME_BAD_REQUEST},	/* sensitive text */
	{80002, OUTCOME_BAD_REQUEST},	/* body too long */
	{80004, OUTCOME_BAD_REQUEST},	/* sensitive picture */
	{90001, OUTCOME_BAD_REQUEST},	/* JSON or a field malformed */
	{90003, OUTCOME_BAD_REQUEST},	/* To_Account missing or unknown */
	{90005, OUTCOME_BAD_REQUEST},	/* MsgRandom missing or no integer */
	{90008, OUTCOME_BAD_REQUEST},	/* From_Account missing or unknown */
	{90011, OUTCOME_BAD_REQUEST},	/* more than 500 accounts */
	{90012, OUTCOME_BAD_REQUEST},	/* To_Account is no array */
	{90018, OUTCOME_BAD_REQUEST},	/* too many accounts */
	{90026, OUTCOME_BAD_REQUEST},	/* life time wrong */
	{90028, OUTCOME_BAD_REQUEST},	/* To_Account missing */
	{90029, OUTCOME_BAD_REQUEST},	/* To_Account empty */
	{90043, OUTCOME_BAD_REQUEST},	/* OfflinePushInfo malformed */
	{90044, OUTCOME_BAD_REQUEST},	/* life time wrong */
	{90048, OUTCOME_BAD_REQUEST},	/* account does not exist */
	{90055, OUTCOME_BAD_REQUEST},	/* body too long */
	{90057, OUTCOME_BAD_REQUEST},	/* DataId over 64 bytes, on this endpoint */
	{93000, OUTCOME_BAD_REQUEST}	/* body too long */
};

/*
 * What a code means for one account of an accepted request, where that
 * differs from what it means for a request.
 */
static const CodeClass account_codes[] = {
	/* about this account, not about the server: final */
	{70051, OUTCOME_BAD_REQUEST},	/* account on the block list */

	/* too many at once: alone it may pass */
	{90011, OUTCOME_TRANSIENT},
	{90018, OUTCOME_TRANSIENT}
};

/* Fields that matter; all others are skipped whatever they hold. */
typedef enum Field
{
	FIELD_OTHER,
	FIELD_STATUS,
	FIELD_CODE,
	FIELD_INFO,
	FIELD_TASK,
	FIELD_LIST,
	FIELD_ACCOUNT
} Field;

/* Nesting levels of the answer: {"ErrorList": [{"To_Account": "a"}]} */
#define LEVEL_ANSWER		1
#define LEVEL_LIST			2
#define LEVEL_ENTRY			3

/* A code that may be absent. */
typedef struct Code
{
	bool		present;
	int			value;
} Code;

/* State of the parser's actions, and what they have found. */
typedef struct Answer
{
	int			level;			/* open objects and arrays */
	Field		field;			/* last field begun at LEVEL_ANSWER */
	Field		entry_field;	/* last field begun at LEVEL_ENTRY */
	bool		in_list;		/* inside ErrorList */
	bool		in_entry;		/* inside an object of ErrorList */

	bool		is_object;
	Code		code;
	char	   *status;			/* these three NULL if absent */
	char	   *info;
	char	   *task_id;

	AccountError entry;			/* the open element of ErrorList */
	Code		entry_code;
	int			nerrors;
	int			max_errors;		/* allocated */
	AccountError *errors;
} Answer;


/* ---------------------------------------------------------------- texts */

/* The first len bytes of a valid UTF-8 text, cut back to a whole character. */
static char *
cut_text(const char *text, size_t len)
{
	size_t		n = strlen(text);
	char	   *copy;

	if (n > len)
	{
		n = len;
		while (n > 0 && ((unsigned char) text[n] & 0xC0) == 0x80)
			n--;
	}
	copy = palloc(n + 1);
	memcpy(copy, text, n);
	copy[n] = '\0';
	return copy;
}

/*
 * Copy the character that begins at src, or U+FFFD for a byte that begins
 * none.  Returns how many bytes of src it took; dst moves by three times that
 * at most.
 */
static size_t
copy_char(char **dst, const unsigned char *src, size_t left)
{
	size_t		len = (size_t) pg_utf_mblen(src);

	if (len <= left && pg_utf8_islegal(src, (int) len))
	{
		memcpy(*dst, src, len);
		*dst += len;
		return len;
	}
	memcpy(*dst, REPLACEMENT, REPLACEMENT_LEN);
	*dst += REPLACEMENT_LEN;
	return 1;
}

/*
 * Any bytes as a readable line of at most max_len bytes: valid UTF-8, control
 * characters turned into spaces, the end marked if something was left out.
 */
static char *
readable_text(const char *bytes, size_t len, size_t max_len)
{
	const unsigned char *src = (const unsigned char *) bytes;
	char	   *text = palloc(max_len + 1);
	char	   *dst = text;
	size_t		room = max_len - strlen("...");
	size_t		done = 0;

	while (done < len && (size_t) (dst - text) + MAX_MULTIBYTE_CHAR_LEN <= room)
	{
		if (src[done] < 0x20 || src[done] == 0x7F)
		{
			*dst++ = ' ';
			done++;
		}
		else
			done += copy_char(&dst, src + done, len - done);
	}
	strcpy(dst, done < len ? "..." : "");
	return text;
}

/*
 * Mask every UserSig in a text that will be stored and shown: error pages
 * like to repeat the URL.  A UserSig is the base64 of a zlib stream, so it
 * begins with one of four words, by the stream's level.
 */
static char *
mask_usersig(char *text)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	"abcdefghijklmnopqrstuvwxyz0123456789*-_%";
	char	   *dst = text;
	const char *src = text;

	while (*src != '\0')
	{
		if (src[0] == 'e' &&
			(strncmp(src, "eAE", 3) == 0 || strncmp(src, "eF4", 3) == 0 ||
			 strncmp(src, "eJ", 2) == 0 || strncmp(src, "eN", 2) == 0))
		{
			size_t		len = strspn(src, letters);

			if (len >= USERSIG_MIN_LEN)
			{
				memcpy(dst, "***", 3);
				dst += 3;
				src += len;
				continue;
			}
		}
		*dst++ = *src++;
	}
	*dst = '\0';
	return text;
}


/* -------------------------------------------------------- normalisation */

/* The four hexadecimal digits after "\u", or -1. */
static int
hex_escape(const unsigned char *src, size_t left)
{
	int			value = 0;

	if (left < ESCAPE_LEN || src[0] != '\\' || src[1] != 'u')
		return -1;
	for (int i = 2; i < ESCAPE_LEN; i++)
	{
		int			digit;

		if (src[i] >= '0' && src[i] <= '9')
			digit = src[i] - '0';
		else if ((src[i] | 0x20) >= 'a' && (src[i] | 0x20) <= 'f')
			digit = (src[i] | 0x20) - 'a' + 10;
		else
			return -1;
		value = value * 16 + digit;
	}
	return value;
}

/*
 * Copy the escape that begins at src.  Escapes above ASCII become the
 * characters they stand for; U+0000 and halves of surrogate pairs become
 * U+FFFD.  All others are the parser's business, the wrong ones too.
 */
static size_t
copy_escape(char **dst, const unsigned char *src, size_t left)
{
	int			high = hex_escape(src, left);
	int			low;
	pg_wchar	c = 0xFFFD;
	size_t		taken = ESCAPE_LEN;

	if (high < 0)
	{
		/* an escaped quote must not look like the end of the string */
		taken = (left > 1 && (src[1] == '"' || src[1] == '\\')) ? 2 : 1;
		memcpy(*dst, src, taken);
		*dst += taken;
		return taken;
	}
	if (high > 0 && high < 0x80)
	{
		memcpy(*dst, src, ESCAPE_LEN);
		*dst += ESCAPE_LEN;
		return taken;
	}

	if (high >= 0xD800 && high <= 0xDBFF)
	{
		low = hex_escape(src + ESCAPE_LEN, left - ESCAPE_LEN);
		if (low >= 0xDC00 && low <= 0xDFFF)
		{
			c = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
			taken += ESCAPE_LEN;
		}
	}
	else if (high != 0 && !(high >= 0xDC00 && high <= 0xDFFF))
		c = (pg_wchar) high;

	unicode_to_utf8(c, (unsigned char *) *dst);
	*dst += pg_utf_mblen((unsigned char *) *dst);
	return taken;
}

/*
 * Copy a body so that the parser cannot raise an error on it: valid UTF-8, no
 * NUL, no escape above ASCII, bounded nesting.  dst has room for three bytes
 * for each of src.  Returns NULL, or why the body is not worth parsing.
 */
static const char *
normalise(char *dst, size_t *dst_len, const char *body, size_t len)
{
	const unsigned char *src = (const unsigned char *) body;
	char	   *start = dst;
	bool		in_string = false;
	int			depth = 0;
	size_t		done = 0;

	while (done < len)
	{
		unsigned char c = src[done];

		if (c == '\0')
			return "NUL byte";
		if (in_string && c == '\\')
		{
			done += copy_escape(&dst, src + done, len - done);
			continue;
		}
		if (c == '"')
			in_string = !in_string;
		else if (!in_string && (c == '{' || c == '['))
			depth++;
		else if (!in_string && (c == '}' || c == ']'))
			depth--;
		if (depth > RESPONSE_MAX_DEPTH)
			return "nested too deeply";
		done += copy_char(&dst, src + done, len - done);
	}
	*dst = '\0';
	*dst_len = (size_t) (dst - start);
	return NULL;
}


/* -------------------------------------------------------------- parsing */

/* Begin an element of ErrorList, of which nothing is known yet. */
static void
begin_entry(Answer *answer)
{
	memset(&answer->entry, 0, sizeof(answer->entry));
	memset(&answer->entry_code, 0, sizeof(answer->entry_code));
}

/* Keep the element of ErrorList that has just ended. */
static void
keep_entry(Answer *answer)
{
	AccountError *entry = &answer->entry;

	if (answer->entry_code.present && answer->entry_code.value == 0)
		return;
	if (answer->nerrors >= RESPONSE_MAX_ERRORS)
		return;
	if (answer->nerrors >= answer->max_errors)
	{
		answer->max_errors = Max(16, 2 * answer->max_errors);
		if (answer->errors == NULL)
			answer->errors = palloc(answer->max_errors * sizeof(AccountError));
		else
			answer->errors = repalloc(answer->errors,
									  answer->max_errors * sizeof(AccountError));
	}

	entry->code = answer->entry_code.present ? answer->entry_code.value : -1;
	if (entry->account == NULL)
		entry->account = cut_text("", 0);
	if (entry->info == NULL)
		entry->info = cut_text("", 0);
	mask_usersig(entry->info);
	answer->errors[answer->nerrors++] = *entry;
}

/* An object or array begins: what it is follows from where it stands. */
static void
begin_container(Answer *answer, bool is_object)
{
	if (answer->level == 0)
		answer->is_object = is_object;
	else if (answer->level == LEVEL_ANSWER)
		answer->in_list = answer->field == FIELD_LIST && !is_object;
	else if (answer->level == LEVEL_LIST && answer->in_list)
	{
		answer->in_entry = is_object;
		answer->entry_field = FIELD_OTHER;
		begin_entry(answer);
	}
	answer->level++;
}

static void
end_container(Answer *answer)
{
	answer->level--;
	if (answer->level == LEVEL_ANSWER)
		answer->in_list = false;
	else if (answer->level == LEVEL_LIST && answer->in_list)
	{
		keep_entry(answer);
		answer->in_entry = false;
	}
}

static JSON_ACTION
on_object_start(void *state)
{
	begin_container((Answer *) state, true);
	JSON_ACTION_DONE;
}

static JSON_ACTION
on_array_start(void *state)
{
	begin_container((Answer *) state, false);
	JSON_ACTION_DONE;
}

static JSON_ACTION
on_container_end(void *state)
{
	end_container((Answer *) state);
	JSON_ACTION_DONE;
}

/*
 * A field of the answer begins.  What the same field held before is
 * forgotten, so that of two the last one counts, whatever its type.
 */
static Field
begin_answer_field(Answer *answer, const char *name)
{
	if (strcmp(name, "ActionStatus") == 0)
	{
		answer->status = NULL;
		return FIELD_STATUS;
	}
	if (strcmp(name, "ErrorCode") == 0)
	{
		answer->code.present = false;
		return FIELD_CODE;
	}
	if (strcmp(name, "ErrorInfo") == 0)
	{
		answer->info = NULL;
		return FIELD_INFO;
	}
	if (strcmp(name, "TaskId") == 0)
	{
		answer->task_id = NULL;
		return FIELD_TASK;
	}
	if (strcmp(name, "ErrorList") == 0)
	{
		answer->nerrors = 0;
		return FIELD_LIST;
	}
	return FIELD_OTHER;
}

/* The same inside an element of ErrorList. */
static Field
begin_entry_field(Answer *answer, const char *name)
{
	if (strcmp(name, "To_Account") == 0)
	{
		answer->entry.account = NULL;
		return FIELD_ACCOUNT;
	}
	if (strcmp(name, "ErrorCode") == 0)
	{
		answer->entry_code.present = false;
		return FIELD_CODE;
	}
	if (strcmp(name, "ErrorInfo") == 0)
	{
		answer->entry.info = NULL;
		return FIELD_INFO;
	}
	return FIELD_OTHER;
}

static JSON_ACTION
on_field_start(void *state, char *name, bool isnull pg_attribute_unused())
{
	Answer	   *answer = (Answer *) state;

	if (answer->level == LEVEL_ANSWER)
		answer->field = begin_answer_field(answer, name);
	else if (answer->level == LEVEL_ENTRY && answer->in_entry)
		answer->entry_field = begin_entry_field(answer, name);
	JSON_ACTION_DONE;
}

static JSON_ACTION
on_field_end(void *state pg_attribute_unused(), char *name,
			 bool isnull pg_attribute_unused())
{
	pfree(name);
	JSON_ACTION_DONE;
}

/* A JSON number as a code: a whole number that fits, or nothing. */
static void
set_code(Code *code, const char *token, JsonTokenType type)
{
	char	   *end;
	long		value;

	if (type != JSON_TOKEN_NUMBER)
		return;
	errno = 0;
	value = strtol(token, &end, 10);
	if (errno != 0 || *end != '\0' || value < INT_MIN || value > INT_MAX)
		return;
	code->present = true;
	code->value = (int) value;
}

static void
set_text(char **text, const char *token, JsonTokenType type)
{
	if (type == JSON_TOKEN_STRING)
		*text = cut_text(token, RESPONSE_MAX_TEXT);
}

static void
set_answer_field(Answer *answer, const char *token, JsonTokenType type)
{
	if (answer->field == FIELD_STATUS)
		set_text(&answer->status, token, type);
	else if (answer->field == FIELD_CODE)
		set_code(&answer->code, token, type);
	else if (answer->field == FIELD_INFO)
		set_text(&answer->info, token, type);
	else if (answer->field == FIELD_TASK)
		set_text(&answer->task_id, token, type);
}

static void
set_entry_field(Answer *answer, const char *token, JsonTokenType type)
{
	if (answer->entry_field == FIELD_ACCOUNT)
		set_text(&answer->entry.account, token, type);
	else if (answer->entry_field == FIELD_CODE)
		set_code(&answer->entry_code, token, type);
	else if (answer->entry_field == FIELD_INFO)
		set_text(&answer->entry.info, token, type);
}

static JSON_ACTION
on_scalar(void *state, char *token, JsonTokenType type)
{
	Answer	   *answer = (Answer *) state;

	if (answer->level == LEVEL_ANSWER)
		set_answer_field(answer, token, type);
	else if (answer->level == LEVEL_LIST && answer->in_list)
	{
		/* no object, hence no account */
		begin_entry(answer);
		keep_entry(answer);
	}
	else if (answer->level == LEVEL_ENTRY && answer->in_entry)
		set_entry_field(answer, token, type);
	pfree(token);
	JSON_ACTION_DONE;
}

/* Parse normalised text.  Returns NULL, or why it is no answer of the API. */
static const char *
parse_answer(Answer *answer, char *text, size_t len)
{
	JsonSemAction actions = {
		.semstate = answer,
		.object_start = on_object_start,
		.object_end = on_container_end,
		.array_start = on_array_start,
		.array_end = on_container_end,
		.object_field_start = on_field_start,
		.object_field_end = on_field_end,
		.scalar = on_scalar
	};
	JsonLexContext *lex = json_lex_begin(text, len);
	JsonParseErrorType result = pg_parse_json(lex, &actions);

	json_lex_end(lex);
	if (result != JSON_SUCCESS)
		return "not valid JSON";
	if (!answer->is_object)
		return "not a JSON object";
	if (!answer->code.present)
		return "no integer ErrorCode";
	return NULL;
}

/*
 * Read a body.  Returns NULL if it is an answer of the API, that is an object
 * whose ErrorCode is an integer, or why it is none.
 */
static const char *
read_answer(Answer *answer, const char *body, size_t len)
{
	const char *reason;
	char	   *text;
	size_t		text_len = 0;

	memset(answer, 0, sizeof(*answer));
	if (body == NULL || len == 0)
		return "empty body";
	if (len > BODY_MAX_LEN)
		return "body too long";

	text = palloc(REPLACEMENT_LEN * len + 1);
	reason = normalise(text, &text_len, body, len);
	if (reason == NULL)
		reason = parse_answer(answer, text, text_len);
	pfree(text);
	return reason;
}


/* ------------------------------------------------------- classification */

static const CodeClass *
find_code(const CodeClass *codes, int ncodes, int code)
{
	for (int i = 0; i < ncodes; i++)
	{
		if (codes[i].code == code)
			return &codes[i];
	}
	return NULL;
}

/* See response.h. */
bool
response_code_known(int code)
{
	return find_code(request_codes, lengthof(request_codes), code) != NULL;
}

/* See response.h. */
OutcomeClass
response_code_class(int code)
{
	const CodeClass *found;

	if (code == 0)
		return OUTCOME_SENT;
	found = find_code(request_codes, lengthof(request_codes), code);
	return found != NULL ? found->class : OUTCOME_TRANSIENT;
}

/* See response.h. */
bool
response_code_too_many(int code)
{
	return code == 90011 || code == 90018;
}

/*
 * See response.h.  Codes that stop a whole server cannot be meant so when the
 * request was accepted: such an account is tried again like any other.
 */
OutcomeClass
response_account_class(int code)
{
	const CodeClass *found;

	found = find_code(account_codes, lengthof(account_codes), code);
	if (found == NULL)
		found = find_code(request_codes, lengthof(request_codes), code);
	if (found == NULL ||
		found->class == OUTCOME_RESIGN || found->class == OUTCOME_SERVER_STOP)
		return OUTCOME_TRANSIENT;
	return found->class;
}

/* See response.h. */
const char *
outcome_class_name(OutcomeClass class)
{
	switch (class)
	{
		case OUTCOME_SENT:
			return "sent";
		case OUTCOME_PARTIAL:
			return "partial";
		case OUTCOME_NOT_SENT:
			return "not-sent";
		case OUTCOME_THROTTLED:
			return "throttled";
		case OUTCOME_RESIGN:
			return "re-sign";
		case OUTCOME_SERVER_STOP:
			return "server-stop";
		case OUTCOME_TRANSIENT:
			return "transient";
		case OUTCOME_UNKNOWN:
			return "unknown";
		case OUTCOME_BAD_REQUEST:
			return "bad-request";
	}
	return "unknown";
}

/*
 * Class of an answer that is none of the API's.  The API itself answers with
 * status 200 whatever it decided (Tencent document 1047/34620), so any other
 * status speaks for something in between.
 */
static OutcomeClass
status_class(int http_status)
{
	/* turned away at the door, which the standard promises of both */
	if (http_status == 429 || http_status == 503)
		return OUTCOME_THROTTLED;

	/* a redirect is never followed: wrong host or path, as with any 4xx */
	if (http_status >= 300 && http_status <= 499)
		return OUTCOME_SERVER_STOP;

	/* the request left, and nobody says what became of it */
	return OUTCOME_UNKNOWN;
}

/*
 * Class of an answer of the API.  Code 0 alone is success.  FAIL beside it is
 * a definite refusal that lacks its code, so it is treated as a refusal with
 * a code that nobody knows: tried again, few times.  Any other status beside
 * it contradicts code 0 without saying what happened, which is doubt.
 */
static OutcomeClass
answer_class(const Answer *answer)
{
	if (answer->code.value != 0)
		return response_code_class(answer->code.value);
	if (answer->status != NULL && strcmp(answer->status, "FAIL") == 0)
		return OUTCOME_TRANSIENT;
	if (answer->status != NULL && strcmp(answer->status, "OK") != 0)
		return OUTCOME_UNKNOWN;
	return answer->nerrors > 0 ? OUTCOME_PARTIAL : OUTCOME_SENT;
}

/* What to tell of an answer that is none of the API's. */
static char *
describe_unreadable(const Transfer *transfer, const char *reason)
{
	char	   *excerpt;
	char	   *text = palloc(RESPONSE_MAX_TEXT + 1);

	if (transfer->body == NULL || transfer->body_len == 0)
	{
		snprintf(text, RESPONSE_MAX_TEXT + 1,
				 "unreadable answer (HTTP %d): %s",
				 transfer->http_status, reason);
		return text;
	}
	excerpt = readable_text(transfer->body, transfer->body_len,
							EXCERPT_MAX_LEN);
	snprintf(text, RESPONSE_MAX_TEXT + 1,
			 "unreadable answer (HTTP %d): %s (%s)",
			 transfer->http_status, excerpt, reason);
	pfree(excerpt);
	return mask_usersig(text);
}

/* A transfer that brought no complete answer. */
static void
judge_broken(const Transfer *transfer, Outcome *outcome)
{
	const char *error = transfer->error != NULL ? transfer->error : "";

	outcome->class = transfer->end == TRANSFER_NOT_SENT ?
		OUTCOME_NOT_SENT : OUTCOME_UNKNOWN;
	outcome->error_info = mask_usersig(readable_text(error, strlen(error),
													 RESPONSE_MAX_TEXT));
}

/* See response.h. */
void
response_outcome(const Transfer *transfer, Outcome *outcome)
{
	Answer		answer;
	const char *reason;

	memset(outcome, 0, sizeof(*outcome));
	outcome->http_status = transfer->http_status;
	outcome->retry_after = -1;
	if (transfer->end != TRANSFER_ANSWERED)
	{
		judge_broken(transfer, outcome);
		return;
	}

	if (transfer->retry_after >= 0)
		outcome->retry_after = Min(transfer->retry_after, RETRY_AFTER_MAX);
	reason = read_answer(&answer, transfer->body, transfer->body_len);
	if (reason != NULL)
	{
		outcome->class = status_class(transfer->http_status);
		outcome->error_info = describe_unreadable(transfer, reason);
		return;
	}

	outcome->class = answer_class(&answer);
	outcome->has_code = true;
	outcome->error_code = answer.code.value;
	outcome->error_info = mask_usersig(answer.info != NULL ?
									   answer.info : cut_text("", 0));
	if (answer.task_id != NULL && answer.task_id[0] != '\0')
		outcome->task_id = mask_usersig(answer.task_id);
	outcome->nerrors = answer.nerrors;
	outcome->errors = answer.nerrors > 0 ? answer.errors : NULL;
}

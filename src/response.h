/*-------------------------------------------------------------------------
 *
 * response.h
 *	  What came of a request: the answer's text, its class, the next step.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_RESPONSE_H
#define TIMPUSH_RESPONSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Classes of outcome, in the order in which doc/ and the policy list them. */
typedef enum OutcomeClass
{
	OUTCOME_SENT,				/* every account accepted */
	OUTCOME_PARTIAL,			/* accepted, but some accounts listed */
	OUTCOME_NOT_SENT,			/* no byte of the request left */
	OUTCOME_THROTTLED,			/* over a frequency limit */
	OUTCOME_RESIGN,				/* the UserSig was refused */
	OUTCOME_SERVER_STOP,		/* credentials, plan or permission */
	OUTCOME_TRANSIENT,			/* trouble at the other side */
	OUTCOME_UNKNOWN,			/* may or may not have been processed */
	OUTCOME_BAD_REQUEST			/* refused for what it contains */
} OutcomeClass;

/* How the transfer itself ended, as http.c saw it. */
typedef enum TransferEnd
{
	TRANSFER_ANSWERED,			/* a complete HTTP answer */
	TRANSFER_NOT_SENT,			/* failed before a byte of the body left */
	TRANSFER_IN_DOUBT			/* failed after that */
} TransferEnd;

typedef struct Transfer
{
	TransferEnd end;
	int			http_status;	/* 0 if no status line came */
	int			retry_after;	/* seconds, -1 if the answer names none */
	const char *error;			/* libcurl's words, NULL if answered */
	const char *body;			/* not NUL-terminated, hostile */
	size_t		body_len;
} Transfer;

/*
 * One element of the answer's ErrorList.  An element that names no account is
 * kept, so that the caller finds it among those that it cannot match; one
 * whose code is 0 reports no error and is left out.
 */
typedef struct AccountError
{
	char	   *account;		/* UTF-8, never NULL, empty if not named */
	int			code;			/* -1 if there is none that can be read */
	char	   *info;			/* UTF-8, never NULL, may be empty */
} AccountError;

typedef struct Outcome
{
	OutcomeClass class;
	int			http_status;	/* 0 if no status line came */
	int			retry_after;	/* seconds within 0..RETRY_AFTER_MAX, -1 */
	bool		has_code;		/* the answer was a readable API body */
	int			error_code;		/* of the API, 0 without one */
	char	   *error_info;		/* UTF-8, never NULL, at most
								 * RESPONSE_MAX_TEXT bytes */
	char	   *task_id;		/* UTF-8, NULL if absent or empty */
	int			nerrors;
	AccountError *errors;
} Outcome;

#define RESPONSE_MAX_TEXT	1024	/* bytes kept of any text of the answer */
#define RESPONSE_MAX_DEPTH	16	/* nesting; the documented answer has 3 */
#define RESPONSE_MAX_ERRORS 10000	/* ErrorList entries that are kept */
#define RETRY_AFTER_MAX		300 /* seconds */

/*
 * Judge a finished transfer by policy: parse the body if there is one and
 * classify.  Never fails: what cannot be read is an outcome too.  All strings
 * are palloc'd in the current memory context and are valid UTF-8 without NUL.
 * A UserSig that the other side echoes is masked in every text but that of an
 * account.
 */
extern void response_outcome(const Transfer *transfer, Outcome *outcome);

/* Class of a top-level ErrorCode of v4/timpush/batch (0 is OUTCOME_SENT). */
extern OutcomeClass response_code_class(int code);

/*
 * Class of a code inside ErrorList: OUTCOME_BAD_REQUEST for final ones (70107,
 * 90048, malformed accounts, ...), OUTCOME_TRANSIENT or OUTCOME_THROTTLED or
 * OUTCOME_UNKNOWN for those that are tried again for that account alone.
 * Codes that the table does not know are OUTCOME_TRANSIENT.
 */
extern OutcomeClass response_account_class(int code);

/*
 * True if the table of codes knows the code.  It does not know 0: an answer
 * that says FAIL with code 0 is as transient, and as bounded, as one with a
 * code that nobody has documented.
 */
extern bool response_code_known(int code);

/* True for a code that says that a request has too many accounts. */
extern bool response_code_too_many(int code);

/* The class's name as stored in push_request.class and push_error.class. */
extern const char *outcome_class_name(OutcomeClass class);

#endif							/* TIMPUSH_RESPONSE_H */

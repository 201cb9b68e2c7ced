-- scenario.lua - which trouble a request meets
--
-- Trouble comes from rules (set through the control port) and from the names of
-- the accounts in the request.  decide() returns an outcome; answer.lua sends it.

local cjson = require "cjson.safe"
local echo = require "echo"

local M = {}
local state, seen = ngx.shared.state, ngx.shared.seen
local byte, find, match, sub = string.byte, string.find, string.match, string.sub

-- kind = has the service processed the request when this happens?
local FAULTS = {
	["code"] = false,			-- FAIL with error code arg
	["http"] = false,			-- HTTP status arg and no body
	["html502"] = false,		-- what a proxy in between would say
	["reset-before"] = false,	-- connection reset, body not read (rules only)
	["reset-during"] = false,	-- connection reset, body half read (rules only)
	["reset-after"] = true,		-- connection reset instead of the answer
	["drop-before"] = false,	-- as reset-*, but HTTP/2 resets the stream only
	["drop-after"] = true,		--   and HTTP/1.1 closes the connection
	["truncate"] = true,		-- the answer ends in the middle
	["garbage"] = true,			-- 200 and no JSON
	["drip"] = true,			-- the answer byte by byte, arg ms apart
	["huge"] = true,			-- an answer of arg MB
	["badutf8"] = true,			-- broken UTF-8 and control bytes in ErrorInfo
	["deep"] = true,			-- deeply nested JSON
	["dupkeys"] = true,			-- keys of the answer occur twice
	["nul"] = true,				-- \u0000 in texts
	["extraerr"] = true,		-- ErrorList with a stranger and a repetition
	["echo-info"] = false,		-- the UserSig is repeated in the form arg: in ErrorInfo
	["echo-list"] = true,		--   in ErrorList
	["echo-task"] = true,		--   in TaskId
	["echo-page"] = false,		--   in a page of something in between
}

-- What may happen before the body is read, hence without knowing the accounts.
local EARLY = {
	["reset-before"] = true, ["reset-during"] = true, ["drop-before"] = true,
}

-- The first two bytes of a name as a number.
local function beginning(name)
	local a, b = byte(name, 1, 2)
	return a * 256 + (b or 0)
end

-- Names, by their beginning: an ordinary one costs one look into a table.
local NAMES = {}
for _, form in ipairs({
	{ "^nobody", "acct" },
	{ "^acct%-(%d+)", "acct" },
	{ "^code%-(%d+)", "code" },
	{ "^slow%-(%d+)", "latency" },
	{ "^http%-(%d%d%d)%-ra(%d+)", "http" },
	{ "^http%-(%d%d%d)", "http" },
	{ "^drip%-(%d+)", "drip" },
	{ "^huge%-(%d+)", "huge" },
	{ "^huge", "huge" },
	{ "^html502", "html502" },
	{ "^reset%-before", "reset-before" },
	{ "^reset%-during", "reset-during" },
	{ "^reset%-after", "reset-after" },
	{ "^drop%-before", "drop-before" },
	{ "^drop%-after", "drop-after" },
	{ "^truncate", "truncate" },
	{ "^garbage", "garbage" },
	{ "^badutf8", "badutf8" },
	{ "^deep", "deep" },
	{ "^dupkeys", "dupkeys" },
	{ "^nul%f[^%w]", "nul" },
	{ "^extraerr", "extraerr" },
	{ "^echo%-(%l+)%-info", "echo-info" },
	{ "^echo%-(%l+)%-list", "echo-list" },
	{ "^echo%-(%l+)%-task", "echo-task" },
	{ "^echo%-(%l+)%-page", "echo-page" },
}) do
	local b = beginning(sub(form[1], 2))	-- without the anchor
	NAMES[b] = NAMES[b] or {}
	table.insert(NAMES[b], form)
end
-- "first<N>-<name>" and "acctN-<code>-<n>" pass after N times
local FIRST = beginning("first")
local ACCT = beginning("acctN")

local function parse_name(name, forms)
	for i = 1, #forms do
		local form = forms[i]
		if find(name, form[1]) then
			local arg, arg2 = match(name, form[1])
			if find(form[2], "^echo") then
				return echo.known(arg) and form[2] or nil, arg
			end
			return form[2], tonumber(arg), tonumber(arg2)
		end
	end
end

-- Has this account been seen at most n times, this time included?
local function within(app, account, n)
	return seen:incr(app .. ":" .. account, 1, 0) <= n
end

-- The trouble that a name asks for, or nil.
local function trouble(app, account)
	local b = beginning(account)
	local name = account

	if b == FIRST then
		local n, rest = match(account, "^first(%d+)%-(.+)")
		if not n or not within(app, account, tonumber(n)) then
			return nil
		end
		name, b = rest, beginning(rest)
	elseif b == ACCT and sub(account, 1, 6) == "acctN-" then
		local code, n = match(account, "^acctN%-(%d+)%-(%d+)")
		if code and within(app, account, tonumber(n)) then
			return "acct", tonumber(code)
		end
		return nil
	end

	local forms = NAMES[b]
	if forms then
		return parse_name(name, forms)
	end
end

-- Rules ---------------------------------------------------------------------

local RULE_FIELDS = {
	kind = "string", arg = "number", probability = "number", count = "number",
	app = "string", account = "string", delivered = "boolean",
	retry_after = "number", over = "number",
}
local WANTS_ARG = { code = true, http = true, latency = true, acct = true, drip = true }

local function check_rule(rule)
	if type(rule) ~= "table" then
		return "a rule is an object"
	end
	if rule.kind == "status" then
		rule.kind = "http"
	end
	if type(rule.app) == "number" then
		rule.app = string.format("%.0f", rule.app)
	end
	for name, v in pairs(rule) do
		if not RULE_FIELDS[name] then
			return "unknown field " .. tostring(name)
		elseif type(v) ~= RULE_FIELDS[name] then
			return name .. " is not a " .. RULE_FIELDS[name]
		end
	end
	local kind = rule.kind
	if not kind or find(kind, "^echo")
		or (FAULTS[kind] == nil and kind ~= "latency" and kind ~= "acct") then
		return "unknown kind " .. tostring(kind)
	end
	if WANTS_ARG[kind] and not rule.arg then
		return kind .. " needs arg"
	end
end

-- Replaces all rules.  Returns nothing, or what is wrong with them.
function M.set_rules(text)
	local rules = cjson.decode(text)
	if type(rules) ~= "table" or (next(rules) ~= nil and rules[1] == nil) then
		return "not a JSON array of rules"
	end
	for i, rule in ipairs(rules) do
		local err = check_rule(rule)
		if err then
			return "rule " .. i .. ": " .. err
		end
	end
	state:set("rules", #rules > 0 and cjson.encode(rules) or "[]")
	state:incr("rules_version", 1, 0)
end

-- The rules as this worker knows them, parsed again when they have changed.
local rules, rules_version = {}, nil

local function current_rules()
	local version = state:get("rules_version")
	if version ~= rules_version then
		rules, rules_version = cjson.decode(state:get("rules")), version
	end
	return rules
end

local function has_account(rule, accounts)
	local prefix = rule.account
	for i = 1, #accounts do
		if sub(accounts[i], 1, #prefix) == prefix then
			return true
		end
	end
	return false
end

-- accounts is nil as long as the body has not been read
local function fires(i, rule, app, accounts)
	if rule.app and rule.app ~= app then
		return false
	end
	if rule.account and not (accounts and has_account(rule, accounts)) then
		return false
	end
	if rule.over and not (accounts and #accounts > rule.over) then
		return false
	end
	if rule.probability and math.random() >= rule.probability then
		return false
	end
	return not rule.count
		or state:incr("fired:" .. rules_version .. ":" .. i, 1, 0) <= rule.count
end

-- The fault that strikes before the body is read, or nil.
function M.early(app)
	local all = current_rules()
	for i = 1, #all do
		local rule = all[i]
		if EARLY[rule.kind] and not rule.account and not rule.over and fires(i, rule, app, nil) then
			return rule.kind
		end
	end
end

local function add_failed(outcome, account, code, info)
	table.insert(outcome.failed, { account = account, code = code, info = info })
end

local function fault(outcome, kind, arg, arg2, account)
	outcome.fault, outcome.arg, outcome.retry_after = kind, arg, arg2
	outcome.delivered = FAULTS[kind]
	if kind == "code" then
		outcome.code = arg
		outcome.info = "error " .. arg .. " as ordered"
	elseif kind == "http" then
		outcome.http = arg
	elseif kind == "html502" or kind == "echo-page" then
		outcome.http = 502
	elseif kind == "echo-info" then
		outcome.code = 90001
	elseif kind == "echo-list" then
		add_failed(outcome, account, 70107)
	elseif find(kind, "^reset") or find(kind, "^drop") then
		outcome.http = 0
	elseif account and (kind == "extraerr" or kind == "nul" or kind == "badutf8") then
		-- these need an account that failed
		outcome.account = account
		add_failed(outcome, account, 70107)
	end
end

local function apply_rules(outcome, app, accounts)
	local all = current_rules()
	for i = 1, #all do
		local rule = all[i]
		local kind = rule.kind
		if (not EARLY[kind] or rule.account or rule.over) and fires(i, rule, app, accounts) then
			if kind == "latency" then
				outcome.latency = outcome.latency + rule.arg
			elseif kind == "acct" then
				for _, account in ipairs(accounts) do
					if not rule.account
						or sub(account, 1, #rule.account) == rule.account then
						add_failed(outcome, account, rule.arg, "")
					end
				end
			else
				fault(outcome, kind, rule.arg, rule.retry_after, accounts[1])
				if rule.delivered ~= nil then
					outcome.delivered = rule.delivered
				end
				return
			end
		end
	end
end

-- What happens to a request of good form.
function M.decide(app, accounts)
	local outcome = {
		http = 200, code = 0, info = "", failed = {}, latency = 0,
		delivered = true, swallowed = false,
	}

	apply_rules(outcome, app, accounts)
	for i = 1, #accounts do
		local account = accounts[i]
		local kind, arg, arg2 = trouble(app, account)
		if kind == "latency" then
			outcome.latency = outcome.latency + arg
		elseif kind == "acct" then
			-- the service leaves out the text of 70107
			add_failed(outcome, account, arg or 70107, arg and "")
		elseif kind and not outcome.fault then
			fault(outcome, kind, arg, arg2, account)
		end
	end
	if outcome.code ~= 0 then
		-- a call that fails as a whole lists nobody
		outcome.failed = {}
	end
	return outcome
end

return M

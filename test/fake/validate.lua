-- validate.lua - the form of a request: its address and its body
--
-- Both functions return what was found, or nil, an error code and its text.

local cjson = require "cjson"
local strict = require "strict"
local usersig = require "usersig"

-- Not JSON, though the library would take them: NaN, Infinity, hexadecimal.
cjson.decode_invalid_numbers(false)

local M = {}
local byte, find, match = string.byte, string.find, string.match

local MAX_ACCOUNTS = 500
local MAX_DATA_ID = 64
local MAX_UINT32 = 4294967295

local TOP_FIELDS = {
	From_Account = true, To_Account = true, MsgRandom = true,
	OfflinePushInfo = true, DataId = true, Classification = true,
	OfflineStorageTime = true, TaskName = true,
}

local PUSH_FIELDS = {
	PushFlag = "integer", Title = "string", Desc = "string", Ext = "string",
	MultiLanguageContent = "array", AndroidInfo = "object",
	ApnsInfo = "object", HarmonyInfo = "object", BadgeAddNum = "integer",
	BadgeSetNum = "integer", PushTemplateId = "string",
	PushTemplateParam = "object",
}

-- Only the fields that are not texts; any other one there must be a text.
local VENDOR_FIELDS = {
	AndroidInfo = {
		PushStyle = "integer", OPPONotifyLevel = "integer",
		VIVOClassification = "integer", MeiZuNoticeMsgType = "integer",
		OPPOPrivateTitleParameters = "object",
		OPPOPrivateContentParameters = "object",
	},
	ApnsInfo = {
		BadgeMode = "integer", MutableContent = "integer",
		ContentAvailable = "integer", IsVoipPush = "integer",
		LiveActivity = "object",
	},
	HarmonyInfo = { SoundDuration = "integer" },
}

-- An integer given by digits only (no field here may be negative).  The library
-- makes doubles of all numbers, so 1.0 and 1e3 can be told from 1 and 1000 by
-- the text alone.
local function plain_integer(body, name)
	return find(body, '"' .. name .. '"%s*:%s*%d+%s*[,}]') ~= nil
end

local function type_of(body, name, v)
	local t = type(v)
	if t == "number" then
		return v % 1 == 0 and plain_integer(body, name) and "integer" or "number"
	elseif t ~= "table" then
		return t
	elseif v[1] ~= nil then
		return "array"
	elseif next(v) ~= nil then
		return "object"
	end
	-- [] and {} decode to the same
	return find(body, '"' .. name .. '"%s*:%s*%[') and "array" or "object"
end

function M.address(method, args)
	local app = args.sdkappid

	if method ~= "POST" then
		return nil, 60002, "only POST is served"
	end
	if app == nil or app == "" or app == true then
		return nil, 60012, "sdkappid is missing"
	end
	if type(app) ~= "string" or not usersig.known_app(app) then
		return nil, 60006, "invalid sdkappid"
	end
	for _, name in ipairs({ "identifier", "usersig", "random", "contenttype" }) do
		-- true: no value; a table: given more than once
		if type(args[name]) ~= "string" or args[name] == "" then
			return nil, 60025, "invalid " .. name .. " in URL"
		end
	end
	if args.contenttype ~= "json" then
		return nil, 60025, "invalid contenttype in URL"
	end
	if not find(args.random, "^%d+$") or #args.random > 10
		or tonumber(args.random) > MAX_UINT32 then
		return nil, 60025, "invalid random in URL"
	end
	local code, text = usersig.verify(app, args.identifier, args.usersig)
	if code then
		return nil, code, text
	end
	if not usersig.is_admin(args.identifier) then
		return nil, 90009, "the request requires App Administrator permissions"
	end
	return app
end

-- Which accounts occur more than once; nil when none does.
local function duplicates(accounts)
	local seen, dups = {}, nil
	for i = 1, #accounts do
		local a = accounts[i]
		if seen[a] then
			dups = dups or {}
			dups[#dups + 1] = a
		end
		seen[a] = true
	end
	return dups
end

local function check_push_info(body, info)
	local unknown

	for name, v in pairs(info) do
		local want = PUSH_FIELDS[name]
		if not want then
			unknown = unknown or {}
			unknown[#unknown + 1] = name
		elseif type_of(body, name, v) ~= want then
			return nil, 90043, "invalid " .. name .. " in OfflinePushInfo"
		end
	end
	for vendor, fields in pairs(VENDOR_FIELDS) do
		for name, v in pairs(info[vendor] or {}) do
			if type_of(body, name, v) ~= (fields[name] or "string") then
				return nil, 90043, "invalid " .. name .. " in " .. vendor
			end
		end
	end
	return unknown or {}
end

-- The library does not look at the encoding.
local function is_utf8(body)
	if not find(body, "[\128-\255]") then
		return true
	end
	local _, _, err = ngx.re.find(body, "^", "u")
	return err == nil
end

function M.body(body)
	if not body or not find(body, "%S") then
		return nil, 60003, "the request body is empty"
	end
	if not match(body, "^%s*{") or not is_utf8(body) then
		return nil, 90001, "the request body is not a JSON object"
	end
	local ok, t = pcall(cjson.decode, body)
	if not ok then
		return nil, 90001, "failed to parse the JSON format"
	end
	local flaw = strict.check(body, t)
	if flaw then
		return nil, 90001, flaw
	end

	for name in pairs(t) do
		if not TOP_FIELDS[name] then
			return nil, 90001, "unknown field " .. name
		end
	end

	local from = t.From_Account
	if type(from) ~= "string" or from == "" then
		return nil, 90008, "invalid From_Account"
	end

	local accounts = t.To_Account
	if accounts == nil then
		return nil, 90003, "To_Account is missing"
	end
	if type_of(body, "To_Account", accounts) ~= "array" then
		return nil, 90012, "To_Account is not an array"
	end
	if #accounts == 0 then
		return nil, 90029, "To_Account is empty"
	end
	if #accounts > MAX_ACCOUNTS then
		return nil, 90018, "too many accounts in To_Account"
	end
	for i = 1, #accounts do
		if type(accounts[i]) ~= "string" or accounts[i] == "" then
			return nil, 60015, "an account is not a string"
		end
	end

	local random = t.MsgRandom
	if type(random) ~= "number" or type_of(body, "MsgRandom", random) ~= "integer"
		or random > MAX_UINT32 then
		return nil, 90001, "Invalid format of MsgRandom"
	end

	local data_id = t.DataId
	if data_id ~= nil and type(data_id) ~= "string" then
		return nil, 90001, "invalid DataId"
	end
	if data_id and #data_id > MAX_DATA_ID then
		return nil, 90057, "DataId exceeds 64 bytes"
	end

	for _, name in ipairs({ "Classification", "OfflineStorageTime" }) do
		local v = t[name]
		if v ~= nil and type_of(body, name, v) ~= "integer" then
			return nil, 90026, "invalid " .. name
		end
	end
	if t.TaskName ~= nil and type(t.TaskName) ~= "string" then
		return nil, 90001, "invalid TaskName"
	end

	local info = t.OfflinePushInfo
	if info == nil or type_of(body, "OfflinePushInfo", info) ~= "object" then
		return nil, 90043, "invalid OfflinePushInfo"
	end
	local unknown, code, text = check_push_info(body, info)
	if not unknown then
		return nil, code, text
	end

	-- Accepted as the service does, though some vendors then fail to deliver.
	local ext_ok = true
	if info.Ext and info.Ext ~= "" then
		ext_ok = pcall(cjson.decode, info.Ext)
	end

	return {
		from = from, accounts = accounts, msg_random = random,
		data_id = data_id, title = info.Title, desc = info.Desc,
		ext_ok = ext_ok, dup_accounts = duplicates(accounts),
		unknown_fields = unknown,
	}
end

return M

-- usersig.lua - full verification of a UserSig (version 2.0)
--
-- text --alphabet--> base64 --> zlib --> JSON --> HMAC-SHA256, where the key is
-- the secret's text.  A UserSig that passed is remembered with its end, because
-- a client uses one for hours; the end itself is looked at on each use.

local cjson = require "cjson.safe"
local hmac = require "openssl.hmac"
local zlib = require "zlib"

local M = {}
local apps, admins
local sigs = ngx.shared.sigs
local byte, format = string.byte, string.format
local shown

function M.setup(app_keys, admin_names)
	apps, admins = app_keys, admin_names
end

-- In every worker: where note() writes.
function M.open(path)
	shown = assert(io.open(path, "a"))
end

-- Writes down a UserSig that was shown to us, whatever it is worth.
function M.note(sig)
	if type(sig) == "string" and sigs:add("shown|" .. sig, true) then
		shown:write((sig:gsub("%c", "?")), "\n")
		shown:flush()
	end
end

function M.known_app(app)
	return apps[app] ~= nil
end

function M.is_admin(identifier)
	return admins[identifier] ~= nil
end

local function integer(n)
	return type(n) == "number" and n >= 0 and n % 1 == 0
end

-- The JSON text inside, or nil when any layer is damaged.
local function unpack_text(sig)
	if #sig % 4 ~= 0 or not sig:find("^[%w*-]+_?_?$") then
		return nil
	end
	local b64 = sig:gsub("[*_-]", { ["*"] = "+", ["-"] = "/", ["_"] = "=" })
	local packed = ngx.decode_base64(b64)
	-- The decoder is lenient, an exact copy is not.
	if not packed or ngx.encode_base64(packed) ~= b64 or #packed < 8 then
		return nil
	end
	-- inflate would take a gzip header as well
	local b1, b2 = byte(packed, 1, 2)
	if b1 % 16 ~= 8 or (b1 * 256 + b2) % 31 ~= 0 then
		return nil
	end
	local ok, text, complete, used = pcall(zlib.inflate(), packed)
	if not ok or not complete or used ~= #packed then
		return nil
	end
	return text
end

-- The signed fields, or nil.
local function decode(sig)
	local text = unpack_text(sig)
	local t = text and cjson.decode(text)
	if type(t) ~= "table"
		or t["TLS.ver"] ~= "2.0"
		or type(t["TLS.identifier"]) ~= "string"
		or not integer(t["TLS.sdkappid"])
		or not integer(t["TLS.time"])
		or not integer(t["TLS.expire"])
		or type(t["TLS.sig"]) ~= "string" then
		return nil
	end
	return t
end

-- Returns an error code and its text, or nothing when the signature holds.
function M.verify(app, identifier, sig)
	local cache_key = app .. "|" .. identifier .. "|" .. sig
	local ends = sigs:get(cache_key)

	if not ends then
		local t = decode(sig)
		if not t then
			return 70003, "UserSig is illegal"
		end
		if format("%.0f", t["TLS.sdkappid"]) ~= app then
			return 70014, "SDKAppID does not match the UserSig"
		end
		if t["TLS.identifier"] ~= identifier then
			return 70013, "identifier does not match the UserSig"
		end
		local signed = format("TLS.identifier:%s\nTLS.sdkappid:%s\n"
			.. "TLS.time:%.0f\nTLS.expire:%.0f\n",
			identifier, app, t["TLS.time"], t["TLS.expire"])
		local mac = hmac.new(apps[app], "sha256"):final(signed)
		if ngx.encode_base64(mac) ~= t["TLS.sig"] then
			return 70009, "UserSig verification failed"
		end
		ends = t["TLS.time"] + t["TLS.expire"]
		sigs:set(cache_key, ends)
	end
	if ngx.time() > ends then
		return 70001, "UserSig is expired"
	end
end

return M

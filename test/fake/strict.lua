-- strict.lua - what the JSON library lets pass: control bytes in a text, and a
-- key given twice in one object (the last would win unseen)

local cjson = require "cjson"

local M = {}
local byte, find, sub = string.byte, string.find, string.sub

local QUOTE, COLON = byte('"'), byte(":")
local OPEN_OBJECT, OPEN_ARRAY = byte("{"), byte("[")

-- The position of the quote that ends the text beginning after pos.
local function text_end(body, pos)
	while true do
		pos = find(body, '["\\]', pos + 1)
		if byte(body, pos) == QUOTE then
			return pos
		end
		pos = pos + 1			-- skip the escaped character
	end
end

-- Walks through valid JSON; returns what is wrong, or nothing.
local function walk(body)
	local open = {}				-- per open object its keys, per array nothing
	local depth, pos = 0, 0

	while true do
		pos = find(body, '["{}%[%]]', pos + 1)
		local b = pos and byte(body, pos)
		if not b then
			return
		elseif b == OPEN_OBJECT then
			depth = depth + 1
			open[depth] = {}
		elseif b == OPEN_ARRAY then
			depth = depth + 1
			open[depth] = nil
		elseif b ~= QUOTE then
			depth = depth - 1
		else
			local last = text_end(body, pos)
			local text = sub(body, pos, last)
			if find(text, "[%z\1-\31]") then
				return "a control character in a string"
			end
			if byte(body, find(body, "%S", last + 1)) == COLON then
				local key = cjson.decode("[" .. text .. "]")[1]
				if open[depth][key] then
					return "the key " .. key .. " occurs twice"
				end
				open[depth][key] = true
			end
			pos = last
		end
	end
end

-- The number of keys in decoded JSON.
local function count_keys(t)
	local n = 0
	for k, v in pairs(t) do
		if type(k) == "string" then
			n = n + 1
		end
		if type(v) == "table" then
			n = n + count_keys(v)
		end
	end
	return n
end

-- body is valid JSON and t what it decoded to.  The walk is slow, and needed
-- only if there are more things like keys in the text than keys were decoded.
function M.check(body, t)
	if find(body, "[%z\1-\31]") then
		return walk(body)
	end
	local n, pos = 0, 0
	while true do
		pos = find(body, '"%s*:', pos + 1)
		if not pos then
			break
		end
		n = n + 1
	end
	if n ~= count_keys(t) then
		return walk(body)
	end
end

return M

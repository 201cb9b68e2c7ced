-- echo.lua - the UserSig of a request, as an answer may repeat it

local M = {}
local format, gsub, sub = string.format, string.gsub, string.sub

local function escape(s, sign, how)
	return (gsub(s, sign, function(c)
		return format(how, string.byte(c))
	end))
end

local forms = {}

-- As it is, and escaped as a URL has it, wholly and twice.
forms["plain"] = function(s) return s end
forms["url"] = function(s) return escape(s, "%W", "%%%02X") end
forms["escaped"] = function(s) return escape(s, ".", "%%%02x") end
forms["twice"] = function(s) return escape(s, ".", "%%25%02X") end

forms["upper"] = string.upper
forms["lower"] = string.lower

-- A part of it
forms["tail"] = function(s) return sub(s, math.floor(#s / 2)) end
forms["middle"] = function(s) return sub(s, math.floor(#s / 3), math.floor(#s * 2 / 3)) end
forms["short"] = function(s) return sub(s, 101, 116) end

-- In lines, and its two ends
forms["wrapped"] = function(s) return (gsub(s, ("."):rep(64), "%0\n")) end
forms["broken"] = function(s) return sub(s, 1, 40) .. "..." .. sub(s, -40) end

function M.known(form)
	return forms[form] ~= nil
end

function M.text(form, usersig)
	return "not understood: " .. forms[form](usersig)
end

return M

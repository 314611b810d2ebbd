// Something for a compiler to do: a program whose compilation is recorded.
#include <algorithm>
#include <functional>
#include <iostream>
#include <map>
#include <regex>
#include <unordered_map>

int main()
{
	std::regex pattern("a+b*c");
	std::map<std::string, std::unordered_map<int, std::string>> tables;
	std::cout << std::regex_match("aabc", pattern) << tables.size();
	std::vector<int> numbers{3, 1, 2};
	std::sort(numbers.begin(), numbers.end());
}

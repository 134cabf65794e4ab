// Modules that come as PTX text: bin/ptx translates and compiles them.
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cctype>
#include <cstring>

#include "state.h"

namespace cusim {

static std::string folder_of_this_library() {
    Dl_info here;
    if (!dladdr(reinterpret_cast<void *>(&folder_of_this_library), &here)) return ".";
    const std::string path = here.dli_fname;
    return path.substr(0, path.rfind('/'));
}

// Reads a file.
static std::string read(const std::string &path) {
    std::string content;
    char part[65536];
    if (FILE *file = fopen(path.c_str(), "rb")) {
        for (size_t n; (n = fread(part, 1, sizeof part, file)) > 0;) content.append(part, n);
        fclose(file);
    }
    return content;
}

bool is_text(const char *image) {
    while (isspace(static_cast<unsigned char>(*image))) image++;
    return *image == '.' || (image[0] == '/' && (image[1] == '/' || image[1] == '*'));
}

CUresult compile_ptx(const char *text, std::string *image) {
    const char *folder = getenv("TMPDIR");
    std::string path = std::string(folder && *folder ? folder : "/tmp") + "/cusim-XXXXXX";
    const int file = mkstemp(path.data());
    const size_t size = strlen(text);
    const bool written = file >= 0 && write(file, text, size) == ssize_t(size);
    if (file >= 0) close(file);
    std::string printed;
    int status = -1;
    if (written) {
        if (FILE *output = popen(("'" + folder_of_this_library() + "/bin/ptx' '" + path + "' 2>&1").c_str(), "r")) {
            char part[4096];
            for (size_t n; (n = fread(part, 1, sizeof part, output)) > 0;) printed.append(part, n);
            status = pclose(output);
        }
    }
    if (file >= 0) unlink(path.c_str());
    while (!printed.empty() && printed.back() == '\n') printed.pop_back();
    if (status != 0) return fault(CUDA_ERROR_INVALID_PTX, written ? printed : "cannot write " + path);
    *image = read(printed);
    if (image->empty()) return fault(CUDA_ERROR_INVALID_PTX, "cannot read " + printed);
    counters.ptx_modules++;
    return CUDA_SUCCESS;
}

}  // namespace cusim

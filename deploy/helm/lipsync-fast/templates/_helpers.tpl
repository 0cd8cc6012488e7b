{{/* SPDX-License-Identifier: Apache-2.0 */}}
{{- define "lipsync.name" -}}
{{- if contains "lipsync-fast" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-lipsync-fast" (.Release.Name | trunc 37 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "lipsync.selector" -}}
app.kubernetes.io/name: lipsync-fast
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "lipsync.labels" -}}
{{ include "lipsync.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- define "lipsync.secret" -}}
{{- if .Values.tokens.secret }}{{ .Values.tokens.secret }}
{{- else if or .Values.tokens.token .Values.tokens.adminToken }}{{ include "lipsync.name" . }}{{ end }}
{{- end }}

{{/* What the chart decides of the server's configuration: the environment wins over its file. The
     cluster's network is the operator's own: what is before it encrypts, and the policy keeps others out. */}}
{{- define "lipsync.environment" -}}
LIPSYNC_FAST_FOLDER: /run/lipsync-fast/server
LIPSYNC_FAST_DRAIN_SECONDS: {{ int .Values.drainSeconds | quote }}
LIPSYNC_FAST_LISTEN_HOST: 0.0.0.0
LIPSYNC_FAST_LISTEN_PORTS: 8084
LIPSYNC_FAST_LISTEN_INSECURE: true
LIPSYNC_FAST_LISTEN_HTTP_PORT: 8086
LIPSYNC_FAST_LISTEN_PROXIES: {{ join "," .Values.listen.proxies | quote }}
LIPSYNC_FAST_LISTEN_ORIGINS: {{ join "," .Values.listen.origins | quote }}
LIPSYNC_FAST_AVATARS: /avatars
LIPSYNC_FAST_AVATARS_DEFAULT: {{ .Values.avatars.default }}
LIPSYNC_FAST_ENGINES_GPUS: {{ ternary "all" "none" .Values.gpu.enabled }}
LIPSYNC_FAST_ENGINES_MPS: {{ and .Values.gpu.enabled .Values.gpu.mps }}
LIPSYNC_FAST_UTTERANCES_DISK_MB: {{ int .Values.utterances.diskMb | quote }}
LIPSYNC_FAST_UTTERANCES_FOLDER: /var/lib/lipsync-fast
LIPSYNC_FAST_LOG_FORMAT: json
{{- end }}

{{/* MLflow servers with the folders their credentials are mounted at, as JSON. */}}
{{- define "anneal.trackingServers" -}}
{{- $servers := list -}}
{{- range $index, $server := .Values.tracking.servers -}}
{{- $entry := dict "uri" $server.uri -}}
{{- if $server.credentialsSecret -}}
{{- $_ := set $entry "credentialsDir" (printf "/etc/anneal/tracking/%d" $index) -}}
{{- end -}}
{{- if $server.publicUrl -}}
{{- $_ := set $entry "publicUrl" $server.publicUrl -}}
{{- end -}}
{{- $servers = append $servers $entry -}}
{{- end -}}
{{- toJson $servers -}}
{{- end -}}

{{/* What the operator reads from its environment (anneal_operator.settings). */}}
{{- define "anneal.operatorEnv" -}}
- name: ANNEAL_RELEASE
  value: {{ .Release.Name }}
- name: ANNEAL_POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: ANNEAL_POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: ANNEAL_POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: ANNEAL_WATCH_NAMESPACES
  value: {{ join "," .Values.watch.namespaces | quote }}
- name: ANNEAL_LEASE_NAME
  value: {{ include "anneal.leaseName" . }}
- name: ANNEAL_OWNER_CLUSTER_ROLE
  value: {{ include "anneal.identity" . }}
- name: ANNEAL_PROGRESS_URL
  value: {{ printf "https://%s.%s.svc:%d" (include "anneal.progressService" .) .Release.Namespace (int .Values.progress.port) }}
- name: ANNEAL_PROGRESS_PORT
  value: {{ .Values.progress.port | quote }}
- name: ANNEAL_PROGRESS_TLS_DIR
  value: /etc/anneal/progress-tls
- name: ANNEAL_HEALTH_PORT
  value: {{ .Values.metrics.port | quote }}
- name: ANNEAL_TRACKING_SERVERS
  value: {{ include "anneal.trackingServers" . | quote }}
- name: ANNEAL_LOG_LEVEL
  value: {{ .Values.logLevel }}
- name: HOME
  value: /tmp
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
